//! Structure: a weight file whose header does not fit its length cannot be loaded, whatever its name; one that was
//! never written can be, and makes noise; one whose pickle imports more than tensors need must not be.
//!
//! What a file is, its bytes say; its name only says what it ought to be. A digest proves that a file is what was
//! published, not that it is safe: pickles are followed in proven files as well.
//!
//! Only headers, pickles and a few pages are read. It finds what lengths do not: files without a recorded length that
//! were cut off, and downloads that were given their full length before their content came.

use std::path::Path;

use super::headers::{Entry, Headers, blank};
use super::{Fault, FaultKind};
use crate::artifact::{File, Found};
use crate::observe::Sighting;
use crate::weights::{Kind, WeightsError, check_file, unsafe_text_pickle, unsafe_text_program};

/// Faults for every weight file that is here and is not what it is called.
pub(super) fn broken(sighting: &Sighting<'_>, headers: &Headers<'_>) -> Vec<Fault> {
    let fault = |path: String, place: &Path, (kind, detail): (FaultKind, String)| Fault {
        artifact: sighting.artifact.name.clone(),
        path: Some(path),
        kind,
        detail,
        place: Some(place.to_owned()),
        ranges: Vec::new(),
        remembered: None,
    };
    let named = headers.iter().filter_map(|entry| {
        let place = &entry.found?.path;
        Some(fault(entry.file.path.to_string(), place, of_entry(entry)?))
    });
    let matched = sighting.matches.iter().filter_map(|found| {
        let (name, kind) = (sighting.match_path(found), check_file(&found.path));
        let expected = expected(&name, None);
        let wrong = danger(expected, found, &kind).or_else(|| judge(expected, found, &kind))?;
        Some(fault(name, &found.path, wrong))
    });
    named.chain(matched).collect()
}

fn of_entry(entry: &Entry<'_>) -> Option<(FaultKind, String)> {
    if entry.is_proven && entry.is_harmless {
        return None;
    }
    let (found, File { path, role, .. }) = (entry.found?, entry.file);
    let (expected, kind) = (expected(path.file_name(), role.as_deref()), entry.kind()?);
    // The right digest says that it is what was published, whatever it looks like; not that it may be loaded.
    danger(expected, found, kind).or_else(|| if entry.is_proven { None } else { judge(expected, found, kind) })
}

/// What a pickle would do that must not be done.
fn danger(expected: Option<Format>, found: &Found, kind: &Result<Kind, WeightsError>) -> Option<(FaultKind, String)> {
    match kind {
        Err(error @ WeightsError::UnsafePickle { .. }) => return Some(of_error(error)),
        Ok(Kind::Torch(_) | Kind::Pickle | Kind::Zip) | Err(_) => return None,
        Ok(_) => {}
    }
    // The oldest pickles are texts that begin like nothing else.
    let mut file = fs_err::File::open(&found.path).ok()?;
    let is_given_to_torch = matches!(expected, Some(Format::Torch | Format::Bin));
    let program = if is_given_to_torch { unsafe_text_pickle } else { unsafe_text_program };
    program(&mut file, found.size).as_ref().map(of_error)
}

/// What a file must be by its name, or by what an Ollama image calls it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Format {
    Safetensors,
    Gguf,
    /// What `torch.load` is given: an archive or pickles.
    Torch,
    /// The same, but other programs use the ending too.
    Bin,
    /// A layer of an Ollama image that holds weights.
    Layer,
    Zip,
    Numpy,
}

fn expected(name: &str, role: Option<&str>) -> Option<Format> {
    if matches!(role, Some("model" | "projector" | "adapter")) {
        return Some(Format::Layer);
    }
    let ending = name.rsplit_once('.')?.1.to_ascii_lowercase();
    Some(match ending.as_str() {
        "safetensors" | "sft" => Format::Safetensors,
        "gguf" => Format::Gguf,
        "pth" | "pt" | "ckpt" => Format::Torch,
        "bin" | "pkl" | "pickle" => Format::Bin,
        "zip" | "npz" | "whl" => Format::Zip,
        "npy" => Format::Numpy,
        _ => return None,
    })
}

impl Format {
    fn admits(self, kind: &Kind) -> bool {
        match self {
            Format::Safetensors => matches!(kind, Kind::Safetensors(_)),
            Format::Gguf => matches!(kind, Kind::Gguf(_)),
            Format::Layer => matches!(kind, Kind::Gguf(_) | Kind::Safetensors(_)),
            Format::Torch => matches!(kind, Kind::Torch(_)),
            // Programs give such a file to `torch.load`, which would take a safetensors header for a pickle.
            Format::Bin => !matches!(kind, Kind::Zeros | Kind::Safetensors(_) | Kind::Tar),
            Format::Zip => matches!(kind, Kind::Zip | Kind::Torch(_)),
            Format::Numpy => matches!(kind, Kind::Numpy),
        }
    }

    fn title(self) -> &'static str {
        match self {
            Format::Safetensors => "safetensors",
            Format::Gguf => "GGUF",
            Format::Torch => "a file of PyTorch",
            Format::Bin => "a file of weights",
            Format::Layer => "GGUF or safetensors",
            Format::Zip => "a zip archive",
            Format::Numpy => "an array of numpy",
        }
    }
}

fn judge(expected: Option<Format>, found: &Found, kind: &Result<Kind, WeightsError>) -> Option<(FaultKind, String)> {
    let kind = match kind {
        Ok(kind) => kind,
        Err(error) => return Some(of_error(error)),
    };
    if let Some(fault) = expected.and_then(|expected| unlike(expected, kind)) {
        return Some(fault);
    }
    if expected.is_none() && kind.tensors().is_empty() {
        return None;
    }
    match blank(&found.path, found.size, kind) {
        Ok(None) => None,
        Ok(Some(blank)) if blank.suspected => {
            Some((FaultKind::ZeroFilled, format!("{blank}; its digest tells whether that is right: larder verify")))
        }
        Ok(Some(blank)) => {
            Some((FaultKind::ZeroFilled, format!("{blank}; fetch it again, or copy it from another machine")))
        }
        Err(error) => Some(of_error(&error)),
    }
}

/// Whether a file begins like something else than its name says.
fn unlike(expected: Format, kind: &Kind) -> Option<(FaultKind, String)> {
    Some(match kind {
        Kind::LfsPointer => (FaultKind::NotTheFile, "it is a git-lfs pointer, not the file".to_owned()),
        Kind::Html => (FaultKind::NotTheFile, "it is a web page, not the file".to_owned()),
        Kind::Zeros => {
            let detail = format!("it begins with zeros where {} begins with a header", expected.title());
            (FaultKind::ZeroFilled, detail)
        }
        kind if !expected.admits(kind) => {
            let detail = format!("it does not begin like {}: it is {}", expected.title(), kind.title());
            (FaultKind::Structure, detail)
        }
        _ => return None,
    })
}

fn of_error(error: &WeightsError) -> (FaultKind, String) {
    match error {
        WeightsError::Io(error) => (FaultKind::Unreadable, format!("it cannot be read: {error}")),
        WeightsError::Truncated { .. } => (FaultKind::Truncated, error.to_string()),
        WeightsError::UnsafePickle { .. } => {
            let advice = "do not load it; ask who made it, or use a copy in safetensors";
            (FaultKind::UnsafePickle, format!("{error}; {advice}"))
        }
        _ => (FaultKind::Structure, error.to_string()),
    }
}
