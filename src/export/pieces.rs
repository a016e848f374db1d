//! SHA-256 of a file and of its parts, in one reading.

use std::io::{self, Read};
use std::path::Path;

use crate::digest::{ContentHasher, Sha256};

/// Length of a piece in bytes: what a tool that repairs must fetch again for one wrong byte.
pub const PIECE: u64 = 4 << 20;

/// Digests of a file's parts; the last one may be shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pieces {
    /// The file's length in bytes.
    pub size: u64,
    /// Length of each part in bytes.
    pub length: u64,
    /// One digest for each part, in order.
    pub digests: Vec<Sha256>,
}

/// A file whose pieces must not be told to anybody.
#[derive(Debug, thiserror::Error)]
pub enum PiecesError {
    /// It is not here, or may not be read.
    #[error("it cannot be read here: {0}")]
    Unreadable(io::Error),
    /// It is not the recorded content.
    #[error("its content here is wrong: sha256 is {found}, expected {expected}")]
    Wrong {
        /// What was measured.
        found: Sha256,
        /// What is recorded.
        expected: Sha256,
    },
}

/// Reads the file at `path` once, and refuses it if it is not `expected`.
pub fn read_pieces(path: &Path, expected: &Sha256) -> Result<Pieces, PiecesError> {
    let mut file = fs_err::File::open(path).map_err(PiecesError::Unreadable)?;
    let mut whole = ContentHasher::new();
    let mut pieces = Pieces { size: 0, length: PIECE, digests: Vec::new() };
    let mut piece = Vec::with_capacity(PIECE as usize);
    loop {
        piece.clear();
        let length = (&mut file).take(PIECE).read_to_end(&mut piece).map_err(PiecesError::Unreadable)?;
        if length == 0 {
            break;
        }
        whole.update(&piece);
        pieces.digests.push(Sha256::of(&piece));
        pieces.size += length as u64;
    }
    // A content hasher always takes sha256.
    let found = whole.finish().sha256.unwrap_or_else(|| Sha256::of(&[]));
    if found == *expected { Ok(pieces) } else { Err(PiecesError::Wrong { found, expected: *expected }) }
}
