//! The systemd units of this server, printed or written into a folder; nothing is started.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::{Args, USUAL_ADDRESS, check_reach};
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, expand};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::fsio::{self, Owner, WriteOptions};
use crate::inventory::ServeConfig;
use crate::nightly::{SERVE_SERVICE, SERVE_SOCKET, Serving, serve_service, serve_socket};
use crate::serve::Guests;

/// Prints both units, or writes them into `folder`, and says what follows.
pub(super) fn tell(ui: &Ui, common: &Common, lab: &Lab, args: &Args, folder: Option<&Path>) -> Result<Exit, CliError> {
    let serving = serving(common, lab, args)?;
    let units = [(SERVE_SOCKET, serve_socket(&serving)), (SERVE_SERVICE, serve_service(&serving))];
    for (name, text) in &units {
        match folder {
            None => ui.text(&format!("# /etc/systemd/system/{name}\n{text}\n")),
            Some(folder) => write(ui, &expand(folder, &lab.home).join(name), text)?,
        }
    }
    ui.note(&format!(
        "Nothing has been started. As root: larder serve --units /etc/systemd/system, and what else was given; then \
         mkdir -p {state}; chown {user} {state}; systemctl daemon-reload; systemctl enable --now {SERVE_SOCKET}",
        state = serving.state.display(),
        user = serving.user
    ));
    Ok(Exit::InOrder)
}

fn serving(common: &Common, lab: &Lab, args: &Args) -> Result<Serving, CliError> {
    let config = args.over(&lab.inventory.serve);
    let address = config.address.unwrap_or(USUAL_ADDRESS);
    check(address, &config)?;
    let user = match &args.user {
        Some(name) => Owner::named(name).map(|_| name.clone()).map_err(|error| CliError::usage(error.to_string()))?,
        None => Owner::of(&lab.home)?.name(),
    };
    let mut serve = crate::cli::commands::schedule::base(lab, common)?;
    // The access log goes to the journal.
    serve.retain(|word| word != "--quiet");
    serve.extend(["-v", "serve"].map(str::to_owned));
    serve.extend(options(args));
    let secrets =
        [("--token-file", &config.token_file), ("--certificate", &config.certificate), ("--key", &config.key)];
    let secrets = secrets.into_iter().filter_map(|(option, file)| Some((option, file.as_ref()?)));
    let secrets = secrets.map(|(option, file)| Ok((option, absolute(&expand(file, &lab.home))?)));
    let writes = lab.stores.iter().map(|(_, open)| absolute(open.store.root()));
    Ok(Serving {
        address,
        user,
        serve,
        secrets: secrets.collect::<Result<_, CliError>>()?,
        state: absolute(&lab.state)?,
        writes: if config.fetch_missing { writes.collect::<Result<_, CliError>>()? } else { Vec::new() },
    })
}

/// The token itself may be readable by root only, so that there is one is enough.
fn check(address: SocketAddr, config: &ServeConfig) -> Result<(), CliError> {
    match &config.token_file {
        Some(_) => Ok(()),
        None => check_reach(address, &Guests { networks: config.allow.clone(), token: None }),
    }
}

/// What was given on the command line; the inventory is read again when the server starts.
fn options(args: &Args) -> Vec<String> {
    let mut options: Vec<String> =
        args.allow.iter().flat_map(|network| ["--allow".to_owned(), network.to_string()]).collect();
    let flags = [("--tls", args.tls), ("--gated", args.gated), ("--fetch-missing", args.fetch_missing)];
    options.extend(flags.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name.to_owned()));
    for (name, rate) in [("--max-rate", &args.max_rate), ("--max-rate-per-client", &args.max_rate_per_client)] {
        options.extend(rate.iter().flat_map(|rate| [name.to_owned(), rate.clone()]));
    }
    options
}

fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    crate::cli::commands::schedule::absolute(path).map(PathBuf::from)
}

fn write(ui: &Ui, path: &Path, text: &str) -> Result<(), CliError> {
    let is_foreign = |text: String| !text.starts_with("# Written by `larder serve");
    if fs_err::read_to_string(path).is_ok_and(is_foreign) {
        return Err(CliError::usage(format!("{} exists and was not written by larder", path.display()))
            .hint("move it away, or change it by hand"));
    }
    let options = WriteOptions { mode: Some(0o644), ..WriteOptions::default() };
    fsio::write_atomic(path, text.as_bytes(), &options)
        .map_err(|error| CliError::failed(&error).context(format!("{} cannot be written", path.display())))?;
    ui.note(&format!("written: {}", path.display()));
    Ok(())
}
