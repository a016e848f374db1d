//! `larder sign`: puts a person's word to the lock and the manifests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::cli::error::CliError;
use crate::cli::lab::{Lab, expand};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::fsio::{WriteOptions, write_atomic};
use crate::trust::{self, NAMESPACE, TrustError};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Your ssh key: a private key, or the public one of a key that ssh-agent holds
    #[arg(long, value_name = "FILE", default_value = "~/.ssh/id_ed25519")]
    key: PathBuf,

    /// Only say whose word each file has; exit with 3 if one has nobody's
    #[arg(long, conflicts_with = "key")]
    check: bool,
}

#[derive(Serialize)]
struct Signed {
    files: Vec<Word>,
}

/// Whose word a file has.
#[derive(Serialize)]
struct Word {
    file: PathBuf,
    signed_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let lab = Lab::read(ui, common)?;
    let files = lab.signed_files()?;
    if !args.check {
        let key = expand(&args.key, &lab.home);
        files.iter().try_for_each(|file| sign(file, &key))?;
    }
    let words: Vec<Word> = files.into_iter().map(|file| word(file, &lab)).collect();
    let is_complete = words.iter().all(|word| word.signed_by.is_some());
    for Word { file, signed_by, reason } in &words {
        let told = signed_by.as_ref().map(|owner| format!("signed by {owner}")).or_else(|| reason.clone());
        ui.text(&format!("{}: {}\n", file.display(), told.unwrap_or_default()));
    }
    ui.object("sign", &Signed { files: words });
    if !is_complete && !args.check {
        ui.note("signed, but not with a key that [trust] keys in the inventory names: add its public key there");
    }
    Ok(if is_complete || !args.check { Exit::InOrder } else { Exit::Differences })
}

fn word(file: PathBuf, lab: &Lab) -> Word {
    match trust::check(&file, &lab.inventory.trust.keys) {
        Ok(owner) => Word { file, signed_by: Some(owner), reason: None },
        Err(error) => Word { file, signed_by: None, reason: Some(error.to_string()) },
    }
}

/// Has ssh's own program sign: it knows agents, passphrases and security keys.
fn sign(file: &Path, key: &Path) -> Result<(), CliError> {
    let content = fs_err::File::open(file)?.into_parts().0;
    let signing = Command::new("ssh-keygen")
        .args(["-q", "-Y", "sign", "-n", NAMESPACE, "-f"])
        .arg(key)
        .stdin(content)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let signing = signing.map_err(|error| CliError::from(error).context("ssh-keygen cannot be started"))?;
    let output = signing.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let reason = format!("{} cannot be signed with {}: {said}", file.display(), key.display());
        let hint = "name your key with --key, or make one with: ssh-keygen -t ed25519";
        return Err(CliError::failed(&std::io::Error::other(reason)).hint(hint));
    }
    let signature = trust::signature_of(file);
    write_atomic(&signature, &output.stdout, &WriteOptions::default())
        .map(drop)
        .map_err(|error| CliError::from(error).context(signature.display()))
}

/// Refuses where the inventory wants signatures and one is lacking, or is not on what was read at the start.
pub(super) fn require(lab: &Lab) -> Result<(), CliError> {
    if !lab.inventory.trust.require_signature {
        return Ok(());
    }
    let keys = &lab.inventory.trust.keys;
    let errors: Vec<TrustError> = lab
        .read_texts
        .iter()
        .filter_map(|(file, text)| trust::check_content(file, text.as_bytes(), keys).err())
        .collect();
    match errors.first() {
        None => Ok(()),
        Some(first) => {
            let said: Vec<String> = errors.iter().map(|error| crate::text::chain(error)).collect();
            Err(CliError::failed(&std::io::Error::other(format!("Nothing is carried out: {}", said.join("; "))))
                .hint(first.hint()))
        }
    }
}
