"""The README's demo: two throwaway servers, three backups, one restore, and the proof that the data is equal."""
