//! Where the parts of a generator lie: in a folder of diffusers, or in a single file whose settings and tokenizers are
//! another artifact's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use larder_generators::weights::{Checkpoint, WeightSource as _};

use crate::smoke::{Check, Job, Outcome, Taken};

/// An artifact's files.
type Files = BTreeMap<String, PathBuf>;

/// A kind of generator, by its files.
pub(super) struct Family {
    /// Files that a folder of diffusers has, settings first.
    pub(super) settings: &'static [&'static str],
    /// How the names of the denoiser's tensors begin in a single file.
    pub(super) single: &'static str,
}

/// Where one generator lies.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// Settings and tokenizers, and all weights that are in no file of their own.
    pub(super) folder: PathBuf,
    /// The single file, where there is one.
    pub(super) checkpoint: Option<PathBuf>,
}

impl Family {
    /// Looks among the artifact's files, then for the settings among all others'.
    ///
    /// # Errors
    /// The check that says what is lacking: it ends in [`Outcome::NotPossible`], as nothing is known of the model.
    pub(super) fn find(&self, job: &Job<'_>) -> Result<Parts, Box<Check>> {
        if let Some(folder) = folder_of(job.files, self.settings).filter(|folder| has_weights(job.files, folder)) {
            return Ok(Parts { folder, checkpoint: None });
        }
        let Some(checkpoint) = self.single_file(job.files) else {
            let lack = format!("neither the folders of diffusers nor a file with tensors {}*", self.single);
            return Err(lacking(job, lack));
        };
        let all = std::iter::once(job.files).chain(job.others.values());
        let folder = all.filter_map(|files| folder_of(files, self.settings)).next();
        let folder = folder.ok_or_else(|| {
            let what = "a single file, and no artifact here has the settings and tokenizers for it";
            lacking(job, what.to_owned())
        })?;
        Ok(Parts { folder, checkpoint: Some(checkpoint) })
    }

    fn single_file(&self, files: &Files) -> Option<PathBuf> {
        let is_one = |path: &&PathBuf| {
            path.extension().is_some_and(|extension| extension == "safetensors")
                && Checkpoint::open(path)
                    .is_ok_and(|found| found.shapes().keys().any(|name| name.starts_with(self.single)))
        };
        files.values().find(is_one).cloned()
    }
}

impl Parts {
    /// The file of its own of a part that the folder has no weights of, by the beginnings of its possible names.
    pub(super) fn loose(&self, job: &Job<'_>, part: &str, names: &[&str]) -> Option<PathBuf> {
        let place = self.folder.join(part);
        let all = || std::iter::once(job.files).chain(job.others.values()).flat_map(BTreeMap::values);
        if all().any(|path| path.starts_with(&place) && is_safetensors(path)) {
            return None;
        }
        let is_named = |path: &&PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            is_safetensors(path) && names.iter().any(|known| name.starts_with(known))
        };
        all().find(is_named).cloned()
    }
}

impl Parts {
    /// What of all this is of other artifacts; `encoders` are the text encoders' folders, and the files of their own
    /// that take their places.
    ///
    /// Weights of the other parts are never taken from others: a single file has them all.
    pub(super) fn taken(&self, job: &Job<'_>, encoders: &[(&str, Option<PathBuf>)]) -> Vec<Taken> {
        let mut seen: BTreeSet<&PathBuf> = job.files.values().collect();
        let mut taken = Vec::new();
        for (artifact, files) in job.others {
            let mut of = [Vec::new(), Vec::new()];
            for (name, path) in files {
                if let Some(kind) = self.kind(path, encoders).filter(|_| seen.insert(path)) {
                    of[kind].push(name.clone());
                }
            }
            let named = ["settings and tokenizers", "text encoders"].into_iter().zip(of);
            taken.extend(named.filter(|(_, files)| !files.is_empty()).map(|(what, files)| Taken {
                what: what.to_owned(),
                artifact: artifact.clone(),
                files,
            }));
        }
        taken
    }

    /// 0 for settings and tokenizers, 1 for text encoders, none for what is not read.
    fn kind(&self, path: &Path, encoders: &[(&str, Option<PathBuf>)]) -> Option<usize> {
        if encoders.iter().any(|(_, loose)| loose.as_deref() == Some(path)) {
            return Some(1);
        }
        let within = path.strip_prefix(&self.folder).ok()?;
        let name = within.file_name()?.to_string_lossy();
        let is_weights =
            [".safetensors", ".bin", ".pt", ".pth", ".index.json"].iter().any(|ending| name.ends_with(ending));
        match encoders.iter().find(|(folder, _)| within.starts_with(folder)) {
            _ if !is_weights => Some(0),
            Some((_, None)) => Some(1),
            Some((_, Some(_))) | None => None,
        }
    }
}

fn is_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors")
}

fn lacking(job: &Job<'_>, what: String) -> Box<Check> {
    let wanted = ["a whole generator", "the layouts that larder reads"];
    Box::new(Check::of("files", what, wanted, Vec::new()).at(job.level).ending(Outcome::NotPossible))
}

/// The folder in which all of `needed` lie under their own names.
fn folder_of(files: &Files, needed: &[&str]) -> Option<PathBuf> {
    let first = needed.first()?;
    let depth = Path::new(first).components().count();
    let candidates = files.values().filter(|path| path.ends_with(first)).filter_map(|path| path.ancestors().nth(depth));
    let is_whole = |folder: &&Path| needed.iter().all(|name| files.values().any(|path| *path == folder.join(name)));
    candidates.into_iter().find(is_whole).map(Path::to_owned)
}

fn has_weights(files: &Files, folder: &Path) -> bool {
    let place = folder.join("transformer");
    files.values().any(|path| path.starts_with(&place) && is_safetensors(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_found_under_whatever_it_lies_in() {
        let files = |paths: &[&str]| -> Files {
            paths.iter().map(|path| ((*path).to_owned(), Path::new("/store").join(path))).collect()
        };
        let needed = ["a/config.json", "b/config.json"];
        let whole = files(&["x/a/config.json", "x/b/config.json", "y/a/config.json"]);
        assert_eq!(folder_of(&whole, &needed), Some(PathBuf::from("/store/x")));
        assert_eq!(folder_of(&files(&["a/config.json", "x/b/config.json"]), &needed), None);
        let weights = files(&["x/a/config.json", "x/transformer/model.safetensors"]);
        assert!(has_weights(&weights, Path::new("/store/x")) && !has_weights(&weights, Path::new("/store")));
    }
}
