//! What the lab's machines say of themselves when they are asked over ssh.

use std::path::Path;

use crate::cli::Common;
use crate::cli::commands::remote::Way;
use crate::cli::commands::report::overview;
use crate::cli::error::CliError;
use crate::cli::lab::Lab;
use crate::cli::ui::Ui;
use crate::fleet::{Report, Seen};
use crate::lock::Lock;

/// Asks for nothing but the lock, in a form that ends by itself.
const LOCK_REQUEST: &[u8] = b"GET /lock HTTP/1.0\r\n\r\n";

/// Asks these machines at the same time, this one included if it is named; the answers come in the same order.
pub(in crate::cli) fn ask(
    ui: &Ui,
    common: &Common,
    way: &Way,
    names: &[String],
) -> Result<Vec<Result<Seen, CliError>>, CliError> {
    let lab = Lab::read_wanted(ui, common)?;
    Ok(std::thread::scope(|scope| {
        let asked: Vec<_> = names
            .iter()
            .map(|name| {
                let lab = &lab;
                scope.spawn(move || if *name == lab.machine { here(ui, common, lab) } else { there(way, lab, name) })
            })
            .collect();
        let answer = |asked: std::thread::ScopedJoinHandle<'_, _>| {
            asked.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        asked.into_iter().map(answer).collect()
    }))
}

fn here(ui: &Ui, common: &Common, lab: &Lab) -> Result<Seen, CliError> {
    let overview = serde_json::to_value(overview(ui, common, lab)?).map_err(|error| CliError::failed(&error))?;
    let report = Report::of(overview).map_err(|error| CliError::failed(&error))?;
    let lock = Lock::read(&lab.lock_path).map_err(CliError::from)?;
    Ok(Seen { report, lock })
}

fn there(way: &Way, lab: &Lab, machine: &str) -> Result<Seen, CliError> {
    let told = way.ask(lab, machine, "report --json", b"")?;
    let hint = format!("see what it says: {} {machine} {} report --json", way.ssh, way.remote_larder);
    let report = Report::parse(&String::from_utf8_lossy(&told.stdout))
        .map_err(|error| CliError::failed(&error).context(machine).hint(hint))?;
    let answer = way.ask(lab, machine, "serve --stdio", LOCK_REQUEST)?;
    let lock = lock_in(&answer.stdout, machine).transpose()?;
    Ok(Seen { report, lock })
}

/// The lock in an answer of `serve`; a machine need not have one.
fn lock_in(answer: &[u8], machine: &str) -> Option<Result<Lock, CliError>> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    head.lines().next()?.contains(" 200 ").then(|| {
        let place = format!("inventory.lock of {machine}");
        Lock::parse(Path::new(&place), body).map_err(CliError::from)
    })
}
