"""Physical backups of MySQL and MariaDB servers, taken and restored from the inside."""

__version__ = "0.1.0"
