"""The demo's data: a small shop with tables of several engines, odd names, a view, a trigger and an event."""

from __future__ import annotations

SCHEMA = """
CREATE DATABASE shop CHARACTER SET utf8mb4;
CREATE DATABASE `empty schema`;
USE shop;
CREATE TABLE orders (id INT AUTO_INCREMENT PRIMARY KEY, customer VARCHAR(80), total DECIMAL(10,2), note TEXT,
    placed TIMESTAMP DEFAULT CURRENT_TIMESTAMP, KEY (customer)) ENGINE=InnoDB;
CREATE TABLE `größe & maß` (id INT PRIMARY KEY, `weiß` VARCHAR(40)) ENGINE=InnoDB;
CREATE TABLE visits (id INT AUTO_INCREMENT PRIMARY KEY, page VARCHAR(80)) ENGINE=MyISAM;
CREATE TABLE sessions (id INT AUTO_INCREMENT PRIMARY KEY, token CHAR(40)) ENGINE=Aria;
CREATE TABLE audit (id INT AUTO_INCREMENT PRIMARY KEY, what VARCHAR(200)) ENGINE=InnoDB;
CREATE VIEW big_orders AS SELECT id, customer, total FROM orders WHERE total > 500;
CREATE TRIGGER note_order AFTER INSERT ON orders FOR EACH ROW
    INSERT INTO audit (what) VALUES (CONCAT('order ', NEW.id, ' of ', NEW.customer));
CREATE EVENT tidy ON SCHEDULE EVERY 1 DAY DO DELETE FROM visits WHERE id < 0;
INSERT INTO orders (customer, total, note)
    SELECT CONCAT('customer ', seq % 97), seq % 1000, REPEAT(MD5(seq), 8) FROM seq_1_to_20000;
INSERT INTO `größe & maß` SELECT seq, CONCAT('Maß ', seq) FROM seq_1_to_500;
INSERT INTO visits (page) SELECT CONCAT('/page/', seq % 50) FROM seq_1_to_3000;
INSERT INTO sessions (token) SELECT SHA1(seq) FROM seq_1_to_2000;
"""

ORDERS = """
USE shop;
INSERT INTO orders (customer, total, note)
    SELECT CONCAT('customer ', seq % 89), seq % 700, REPEAT(SHA1(seq), 6) FROM seq_1_to_5000;
INSERT INTO visits (page) SELECT CONCAT('/sale/', seq) FROM seq_1_to_500;
CREATE TABLE refunds (id INT PRIMARY KEY, order_id INT, amount DECIMAL(10,2)) ENGINE=InnoDB;
INSERT INTO refunds SELECT seq, seq * 3, 9.99 FROM seq_1_to_200;
"""

MORE = """
USE shop;
UPDATE orders SET total = total + 1 WHERE id % 7 = 0;
DELETE FROM sessions WHERE id % 2 = 0;
ALTER TABLE refunds ADD COLUMN reason VARCHAR(100) DEFAULT 'too small';
RENAME TABLE refunds TO returns;
TRUNCATE TABLE visits;
"""
