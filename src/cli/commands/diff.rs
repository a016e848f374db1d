//! `larder diff`: what two machines have differently.

use serde::Serialize;

use crate::bucket::Bucket;
use crate::cli::commands::remote::Way;
use crate::cli::commands::{fleet, push};
use crate::cli::error::CliError;
use crate::cli::lab::Lab;
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::fleet::{Difference, Seen, differences};
use crate::report::fleet::differences as text;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// One machine
    #[arg(value_name = "MACHINE")]
    first: String,
    /// The other one
    #[arg(value_name = "MACHINE")]
    second: String,
    /// The bucket that they have told, as [sources] buckets calls it [default: the only one]
    #[arg(long, value_name = "BUCKET")]
    bucket: Option<String>,

    /// Ask both over ssh, whether or not they have told a bucket anything [default where there is no bucket]
    #[arg(long, conflicts_with = "bucket")]
    live: bool,

    #[command(flatten)]
    way: Way,
}

#[derive(Serialize)]
struct Differences<'a> {
    machines: [&'a str; 2],
    differences: &'a [Difference],
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let (first, second) = both(ui, common, args)?;
    let found = differences(&first, &second);
    ui.text(&text(&args.first, &args.second, &found, ui.width()));
    ui.object("diff", &Differences { machines: [&args.first, &args.second], differences: &found });
    Ok(if found.is_empty() { Exit::InOrder } else { Exit::Differences })
}

fn both(ui: &Ui, common: &Common, args: &Args) -> Result<(Seen, Seen), CliError> {
    let lab = Lab::read_wanted(ui, common)?;
    let has_bucket = !lab.inventory.sources_of(&lab.machine).buckets.is_empty();
    if args.live || (!has_bucket && args.bucket.is_none()) {
        let names = [args.first.clone(), args.second.clone()];
        let mut answers = fleet::machines::ask(ui, common, &args.way, &names)?.into_iter();
        // There is one answer for each name.
        let mut next = || answers.next().unwrap_or_else(|| Err(CliError::usage("Two machines are needed")));
        return Ok((next()?, next()?));
    }
    let bucket = push::open(&lab, common, &push::configured(&lab, args.bucket.as_deref())?)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async { Ok((seen(&bucket, &args.first).await?, seen(&bucket, &args.second).await?)) })
}

async fn seen(bucket: &Bucket, machine: &str) -> Result<Seen, CliError> {
    fleet::one(bucket, machine).await?.ok_or_else(|| {
        CliError::usage(format!("{machine} has told {} nothing", bucket.what()))
            .hint("run there: larder push --report; see who has with: larder status --fleet")
    })
}
