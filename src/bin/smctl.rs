//! `smctl`: the control plane.

use std::process::ExitCode;

fn main() -> ExitCode {
    thinorigin::smctl::main()
}
