//! Logging, to stderr.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging. Servers say what they do, commands only what went wrong; `verbose` adds to that, and the
/// variable `THINORIGIN_LOG` overrides it with a filter (`thinorigin=debug,backends=trace`).
pub(crate) fn start(verbose: u8, server: bool) {
    let level = match (verbose, server) {
        (0, false) => "warn",
        (0, true) => "info",
        (1, _) => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("THINORIGIN_LOG").unwrap_or_else(|_| {
        let own = ["thinorigin", "thinorigin_backends", "thinorigin_nbd", "thinorigin_sr"];
        EnvFilter::new(own.map(|name| format!("{name}={level}")).join(","))
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}
