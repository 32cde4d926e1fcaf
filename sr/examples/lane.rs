//! The SR controller on a real kernel, without a daemon: templates are files on loop devices.
//!
//! ```text
//! lane DEVICE   the story of an SR on an empty device, checked step by step
//! ```
//!
//! Meant for user-mode Linux (`tests/lab/uml`), as root. It needs lvm2, thin-provisioning-tools and losetup.

mod lane {
    pub(crate) mod loops;
    pub(crate) mod story;
}

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [device] => lane::story::tell(device),
        _ => Err("usage: lane DEVICE".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let mut cause = e.source();
            let mut text = e.to_string();
            while let Some(error) = cause {
                text.push_str(&format!(": {error}"));
                cause = error.source();
            }
            eprintln!("lane: {text}");
            ExitCode::FAILURE
        }
    }
}
