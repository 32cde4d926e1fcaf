//! `thinorigin`: the data plane.

use std::process::ExitCode;

fn main() -> ExitCode {
    thinorigin::cli::main()
}
