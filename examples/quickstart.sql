-- A small shop on two shards. Run it with: psql "$URL" -f examples/quickstart.sql

DROP TABLE IF EXISTS order_lines, orders, products, customers;

-- Customers with an id below 100 live in one range, the others in a second one, on another shard.
CREATE TABLE customers (
    id    int PRIMARY KEY,
    name  text NOT NULL,
    email varchar(60),
    since date NOT NULL DEFAULT current_date
) WITH (split_at = '100');

CREATE TABLE products (
    sku   varchar(12) PRIMARY KEY,
    title text NOT NULL,
    price numeric(10, 2) NOT NULL,
    stock int NOT NULL DEFAULT 0
) WITH (split_at = '''M''');

CREATE TABLE orders (
    id          bigint PRIMARY KEY,
    customer_id int NOT NULL,
    placed_at   timestamptz NOT NULL DEFAULT now(),
    status      varchar(10) NOT NULL DEFAULT 'new'
) WITH (split_at = '1000');

-- The lines of an order are always on the same shard as the order.
CREATE TABLE order_lines (
    order_id bigint,
    line     int,
    sku      varchar(12) NOT NULL,
    quantity int NOT NULL,
    price    numeric(10, 2) NOT NULL,
    PRIMARY KEY (order_id, line)
) WITH (colocate_with = 'orders');

INSERT INTO customers (id, name, email) VALUES
    (1, 'Ada', 'ada@example.com'),
    (2, 'Barbara', 'barbara@example.com'),
    (150, 'Grace', NULL);

INSERT INTO products (sku, title, price, stock) VALUES
    ('APPLE', 'Apples, a bag', 2.50, 100),
    ('BREAD', 'Bread', 3.20, 40),
    ('TEA', 'Tea, a box', 5.75, 60);

-- One transaction over both shards: the stock of two products and an order, all of it or nothing.
BEGIN;
UPDATE products SET stock = stock - 2 WHERE sku = 'APPLE';
UPDATE products SET stock = stock - 1 WHERE sku = 'TEA';
INSERT INTO orders (id, customer_id) VALUES (1, 1);
INSERT INTO order_lines VALUES (1, 1, 'APPLE', 2, 2.50), (1, 2, 'TEA', 1, 5.75);
COMMIT;

BEGIN;
INSERT INTO orders (id, customer_id) VALUES (2000, 150);
INSERT INTO order_lines VALUES (2000, 1, 'BREAD', 3, 3.20);
UPDATE products SET stock = stock - 3 WHERE sku = 'BREAD';
COMMIT;

-- What is rolled back never was.
BEGIN;
UPDATE products SET stock = 0 WHERE sku = 'TEA';
ROLLBACK;

-- Upserts and RETURNING.
INSERT INTO products (sku, title, price, stock) VALUES ('TEA', 'Tea, a box', 5.75, 10)
    ON CONFLICT (sku) DO UPDATE SET stock = products.stock + excluded.stock
    RETURNING sku, stock;

SELECT * FROM products ORDER BY sku;

-- A join over both shards, and an aggregate.
SELECT c.name, o.id AS order_id, p.title, l.quantity, l.quantity * l.price AS total
FROM customers c
JOIN orders o ON o.customer_id = c.id
JOIN order_lines l ON l.order_id = o.id
JOIN products p ON p.sku = l.sku
ORDER BY o.id, l.line;

SELECT c.name, count(DISTINCT o.id) AS orders, sum(l.quantity * l.price) AS spent
FROM customers c
LEFT JOIN orders o ON o.customer_id = c.id
LEFT JOIN order_lines l ON l.order_id = o.id
GROUP BY c.id
ORDER BY spent DESC NULLS LAST;

-- One shard for a key, both for a question about everything.
EXPLAIN SELECT name FROM customers WHERE id = 150;
EXPLAIN SELECT status, count(*) FROM orders GROUP BY status;
