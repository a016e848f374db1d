//! The `larder` program: everything is in the library, beginning with `larder::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    larder::cli::main()
}
