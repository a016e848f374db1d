//! The tables, in SQL.

/// Grows with every change of the tables. Older databases are completed; a newer one is set aside.
pub(super) const VERSION: i64 = 5;

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS measured (
    path     BLOB PRIMARY KEY,  -- absolute path of the content, links followed
    size     INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode    INTEGER NOT NULL,
    device   INTEGER NOT NULL,
    sha256   BLOB NOT NULL,
    git_sha1 BLOB,
    md5      BLOB,
    at       INTEGER NOT NULL   -- seconds since 1970
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS chunks (
    sha256    BLOB PRIMARY KEY,  -- of the whole content: chunks belong to it, wherever it lies
    size      INTEGER NOT NULL,
    chunk_len INTEGER NOT NULL,
    digests   BLOB NOT NULL      -- BLAKE3 of each chunk, one after the other
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS store_mark (
    root BLOB PRIMARY KEY,
    id   TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS history (
    id       INTEGER PRIMARY KEY,
    at       INTEGER NOT NULL,  -- seconds since 1970
    path     BLOB NOT NULL,     -- absolute path of the content
    artifact TEXT NOT NULL,     -- the first one that wants it; empty where it only arrived
    event    TEXT NOT NULL,     -- proven, first-use, arrived, repaired, or the kind of a fault
    sha256   BLOB,              -- of what was read, where the whole of it was hashed
    bytes    INTEGER NOT NULL,  -- that were read
    detail   TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS history_of_path ON history (path, at);
CREATE TABLE IF NOT EXISTS progress (
    path     BLOB PRIMARY KEY,
    size     INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode    INTEGER NOT NULL,
    device   INTEGER NOT NULL,
    begun    INTEGER NOT NULL,  -- when the first byte was read
    done     INTEGER NOT NULL,  -- bytes that need not be read again: whole chunks
    state    BLOB,              -- of SHA-256 and what runs along after them; NULL where chunks are compared
    digests  BLOB NOT NULL,     -- BLAKE3 of these chunks, or numbers of the wrong ones (8 bytes, big-endian)
    content  BLOB               -- sha256 of the content whose chunks they are compared with
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS damaged (
    path     BLOB PRIMARY KEY,
    size     INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode    INTEGER NOT NULL,
    device   INTEGER NOT NULL,
    content  BLOB NOT NULL,     -- sha256 of what it should be
    ranges   TEXT NOT NULL,     -- first-last byte of what is wrong, joined by blanks
    expected BLOB NOT NULL,     -- BLAKE3 of the first wrong chunk as it should be
    actual   BLOB NOT NULL,     -- and as it is
    at       INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS harmless (
    path     BLOB PRIMARY KEY,  -- whose pickles were followed and do nothing but build tensors
    size     INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode    INTEGER NOT NULL,
    device   INTEGER NOT NULL,
    rules    TEXT NOT NULL      -- by which larder judged
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS run (
    id          INTEGER PRIMARY KEY,
    at          INTEGER NOT NULL,  -- when it ended, seconds since 1970
    depth       TEXT NOT NULL,     -- quick or full
    files       INTEGER NOT NULL,
    proven      INTEGER NOT NULL,
    bytes_read  INTEGER NOT NULL,
    faults      INTEGER NOT NULL,
    interrupted INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS standing (
    artifact TEXT NOT NULL,
    path     TEXT,             -- NULL where the fault is about the whole artifact
    kind     TEXT NOT NULL,
    detail   TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS good (
    artifact TEXT PRIMARY KEY,
    at       INTEGER NOT NULL  -- when all of it was read last and nothing was wrong
) WITHOUT ROWID;
";
