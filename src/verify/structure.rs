//! Structure: a weight file whose header does not fit its length cannot be loaded, whatever its name.
//!
//! Only headers are read. It finds what lengths do not: files without a recorded length that were cut
//! off, and downloads that were given their full length before their content came.

use super::{Fault, FaultKind};
use crate::artifact::File;
use crate::observe::{Proof, Sighting};
use crate::stores::FileState;
use crate::weights::{Kind, WeightsError, check_file};

/// Faults for every weight file that is here and is not what it is called.
pub(super) fn broken(sighting: &Sighting<'_>) -> Vec<Fault> {
    let files = sighting.artifact.files.iter().zip(&sighting.observed.files).zip(&sighting.proofs);
    // What was read and has the right digest is the right file, whatever it looks like.
    let unproven = files.filter(|(_, proof)| !matches!(proof, Proof::Proven { .. }));
    let weights = unproven.filter_map(|((file, state), _)| Some((file, expected(file)?, state)));
    weights
        .filter_map(|(file, expected, state)| {
            let FileState::Present(found) = state else { return None };
            let (kind, detail) = judge(expected, check_file(&found.path))?;
            Some(Fault {
                artifact: sighting.artifact.name.clone(),
                path: Some(file.path.to_string()),
                kind,
                detail,
                place: Some(found.path.clone()),
                ranges: Vec::new(),
            })
        })
        .collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Format {
    Safetensors,
    Gguf,
}

fn expected(file: &File) -> Option<Format> {
    let name = file.path.file_name();
    if name.ends_with(".safetensors") {
        Some(Format::Safetensors)
    } else if name.ends_with(".gguf") {
        Some(Format::Gguf)
    } else {
        None
    }
}

fn judge(expected: Format, found: Result<Kind, WeightsError>) -> Option<(FaultKind, String)> {
    match (expected, found) {
        (Format::Safetensors, Ok(Kind::Safetensors(_))) | (Format::Gguf, Ok(Kind::Gguf(_))) => None,
        (_, Ok(Kind::LfsPointer)) => Some((FaultKind::NotTheFile, "it is a git-lfs pointer, not the file".to_owned())),
        (_, Ok(Kind::Html)) => Some((FaultKind::NotTheFile, "it is a web page, not the file".to_owned())),
        (Format::Safetensors, Ok(_)) => Some((FaultKind::Structure, "it does not begin like safetensors".to_owned())),
        (Format::Gguf, Ok(_)) => Some((FaultKind::Structure, "it does not begin like GGUF".to_owned())),
        (_, Err(WeightsError::Io(error))) => Some((FaultKind::Unreadable, format!("it cannot be read: {error}"))),
        (_, Err(error @ WeightsError::Truncated { .. })) => Some((FaultKind::Truncated, error.to_string())),
        (_, Err(error)) => Some((FaultKind::Structure, error.to_string())),
    }
}
