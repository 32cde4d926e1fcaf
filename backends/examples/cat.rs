//! Writes an object to standard output: `cat LOCATION [CREDENTIALS-FILE]`.

use std::io::Write;
use std::path::Path;
use thinorigin_backends::{Credentials, Options, Source};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    match run().await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cat: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let location = arguments.next().ok_or("usage: cat LOCATION [CREDENTIALS-FILE]")?.parse()?;
    let credentials = Credentials::load(arguments.next().as_deref().map(Path::new))?;
    let source =
        thinorigin_backends::open(&location, &Options::default().with_credentials(credentials)).await?;
    for start in (0..source.len()).step_by(1 << 20) {
        let bytes = source.read(start..source.len().min(start + (1 << 20))).await?;
        std::io::stdout().write_all(&bytes)?;
    }
    Ok(())
}
