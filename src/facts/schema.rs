//! The tables, in SQL, and what older ones become.

use rusqlite::Connection;

/// Grows with every change of the tables. Older databases are completed; a newer one is set aside.
pub(super) const VERSION: i64 = 5;

const SCHEMA: &str = "
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
    event    TEXT NOT NULL,     -- proven, first-use, accepted, arrived, repaired, or the kind of a fault
    sha256   BLOB,              -- of what was read, where the whole of it was hashed
    bytes    INTEGER NOT NULL,  -- that were read
    detail   TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS history_of_path ON history (path, at);
CREATE INDEX IF NOT EXISTS history_of_news ON history (path, at) WHERE event NOT IN ('proven', 'first-use', 'arrived');
CREATE TABLE IF NOT EXISTS trusted (
    path     BLOB PRIMARY KEY,  -- of a file that no record has a digest of
    size     INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode    INTEGER NOT NULL,
    device   INTEGER NOT NULL,
    sha256   BLOB NOT NULL,     -- what it had when it was first seen, or accepted; never changed by reading
    at       INTEGER NOT NULL   -- since when
) WITHOUT ROWID;
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
    kind     TEXT NOT NULL,     -- in which way it is wrong, as verify calls it
    detail   TEXT NOT NULL,     -- the same in words
    content  BLOB,              -- sha256 of what it should be; NULL where that is not known
    ranges   TEXT NOT NULL,     -- first-last byte of what is wrong, joined by blanks; empty where that is not known
    at       INTEGER NOT NULL   -- when it was read
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
    interrupted INTEGER NOT NULL,
    unread        INTEGER NOT NULL DEFAULT 0,  -- files that were left for another time
    unread_bytes  INTEGER NOT NULL DEFAULT 0,
    overdue       INTEGER NOT NULL DEFAULT 0,  -- of these, files that were not read within the greatest age
    overdue_bytes INTEGER NOT NULL DEFAULT 0
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
CREATE TABLE IF NOT EXISTS rate (
    place   TEXT PRIMARY KEY,  -- as plans call it
    bytes   REAL NOT NULL,     -- that came from there, or went there; those of earlier runs count less with each
    seconds REAL NOT NULL      -- that it took
) WITHOUT ROWID;
";

/// What was seen once is no rot of what came after it: the last content that was trusted, and never called wrong.
const TRUST_OF_BEFORE: &str = "
INSERT OR IGNORE INTO trusted
SELECT path, size, mtime_ns, inode, device, content,
    (SELECT min(at) FROM history WHERE path = m.path AND event = 'first-use' AND sha256 = content)
FROM (
    SELECT m.*, (
        SELECT sha256 FROM history
        WHERE path = m.path AND event = 'first-use' AND sha256 IS NOT NULL AND sha256 NOT IN (
            SELECT sha256 FROM history
            WHERE path = m.path AND sha256 IS NOT NULL
                AND event NOT IN ('proven', 'first-use', 'arrived', 'repaired')
        )
        ORDER BY at DESC, id DESC LIMIT 1
    ) AS content
    FROM measured m
) m
WHERE content IS NOT NULL AND 'first-use' = (
    SELECT event FROM history WHERE path = m.path AND event IN ('proven', 'first-use', 'arrived', 'repaired')
    ORDER BY at DESC, id DESC LIMIT 1
);
";

/// Until then, damage had no words of its own: the history has them.
const DAMAGE_OF_BEFORE: &str = "
INSERT OR REPLACE INTO damaged
SELECT d.path, d.size, d.mtime_ns, d.inode, d.device, coalesce(h.event, 'corrupt'),
    coalesce(h.detail, 'its content is wrong'), d.content, d.ranges, d.at
FROM damaged_before d LEFT JOIN history h ON h.id = (
    SELECT id FROM history
    WHERE path = d.path AND event NOT IN ('proven', 'first-use', 'arrived', 'repaired')
    ORDER BY at DESC, id DESC LIMIT 1
);
DROP TABLE damaged_before;
";

/// Makes the tables of this version out of nothing, or out of those of `version`, all or, where that fails, none.
pub(super) fn complete(connection: &Connection) -> Result<(), rusqlite::Error> {
    // Several larders may find the same old database: the first completes it.
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let completed = (|| {
        if version(connection)? == VERSION {
            return Ok(());
        }
        let has_old_damage = has_table(connection, "damaged")? && !has_column(connection, "damaged", "kind")?;
        if has_old_damage {
            connection.execute_batch("ALTER TABLE damaged RENAME TO damaged_before")?;
        }
        if has_table(connection, "run")? && !has_column(connection, "run", "unread")? {
            for column in ["unread", "unread_bytes", "overdue", "overdue_bytes"] {
                connection.execute_batch(&format!("ALTER TABLE run ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0"))?;
            }
        }
        connection.execute_batch(SCHEMA)?;
        connection.execute_batch(TRUST_OF_BEFORE)?;
        if has_old_damage {
            connection.execute_batch(DAMAGE_OF_BEFORE)?;
        }
        connection.pragma_update(None, "user_version", VERSION)
    })();
    let ended = connection.execute_batch(if completed.is_ok() { "COMMIT" } else { "ROLLBACK" });
    completed.and(ended)
}

/// The version that a database says it has; 0 where it is empty.
pub(super) fn version(connection: &Connection) -> Result<i64, rusqlite::Error> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn has_table(connection: &Connection, name: &str) -> Result<bool, rusqlite::Error> {
    let ask = "SELECT count(*) > 0 FROM sqlite_master WHERE type = 'table' AND name = ?1";
    connection.query_row(ask, [name], |row| row.get(0))
}

fn has_column(connection: &Connection, table: &str, name: &str) -> Result<bool, rusqlite::Error> {
    let ask = "SELECT count(*) > 0 FROM pragma_table_info(?1) WHERE name = ?2";
    connection.query_row(ask, [table, name], |row| row.get(0))
}
