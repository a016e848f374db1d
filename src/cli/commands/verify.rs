//! `larder verify`: is what is here what the lock says?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cli::commands::after::{self, BusyArgs, Skipped};
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::nightly::Depth;
use crate::report::verdict;
use crate::verify;

#[derive(Debug, Default, clap::Args)]
pub(in crate::cli) struct Args {
    /// Names, links, sizes, headers and shard indexes only; reads no weights
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Read every byte and compare every digest [default]
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    busy: BusyArgs,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let lab = Lab::read_wanted(ui, common)?;
    if let Some(skipped) = args.busy.obstacle(ui)? {
        ui.text(&format!("Nothing was verified, because the machine is needed: {skipped}\n"));
        ui.object("verify", &Skipped { skipped });
        return Ok(Exit::InOrder);
    }
    let mut sightings = lab.sight(false)?;
    lab.hear_servers(common, &mut sightings)?;
    let verdict = if args.quick && !args.full {
        verify::quick(&sightings)
    } else {
        let stop = stopped_by_signals()?;
        let monitor = ui.monitor(None);
        verify::full(&sightings, &lab.facts, monitor.as_ref(), now, &|| stop.load(Ordering::Relaxed))
    };
    let depth = if args.quick && !args.full { Depth::Quick } else { Depth::Full };
    ui.text(&verdict::text(&verdict, !args.quick));
    ui.object("verify", &verdict);
    after::remember(ui, &lab, &verdict, depth);
    Ok(match (verdict.interrupted, verdict.faults.is_empty()) {
        (true, _) => Exit::Interrupted,
        (false, true) => Exit::InOrder,
        (false, false) => Exit::Differences,
    })
}

fn stopped_by_signals() -> Result<Arc<AtomicBool>, CliError> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listen = move || {
        let heard = runtime.block_on(async {
            super::stop_signal()?.await;
            Ok::<_, std::io::Error>(())
        });
        flag.store(heard.is_ok(), Ordering::Relaxed);
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen)?;
    Ok(stop)
}
