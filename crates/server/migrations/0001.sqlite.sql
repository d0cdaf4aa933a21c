-- Version 1: one table per kind of object, the revision counter and the change log.
-- That no two entries are similar is kept by the one writer: an index for it would cost most of every commit.
-- An object is a JSON body under its key. row_number ascends with creation and orders listings.
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
-- The counter is updated first in every write, which puts all servers' writes in one order.
CREATE TABLE revision (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    revision INTEGER NOT NULL
);
INSERT INTO revision (id, revision) VALUES (1, 0);
CREATE TABLE changes (
    revision INTEGER NOT NULL,
    kind TEXT NOT NULL,
    key TEXT NOT NULL
);
CREATE INDEX changes_by_revision ON changes (revision);
CREATE TABLE entries (
    row_number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    revision INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE TABLE agents (
    row_number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    revision INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE TABLE bundles (
    row_number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    revision INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE TABLE join_tokens (
    row_number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    revision INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE TABLE federation_relationships (
    row_number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    revision INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE TABLE journals (
    row_number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    revision INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE TABLE leases (
    row_number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    revision INTEGER NOT NULL,
    body TEXT NOT NULL
);
