//! Starting a server where none runs.

use super::{AttachRequest, Attached, Client, record};
use crate::error::{Error, Kind, Result};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a new server to answer.
const START: Duration = Duration::from_secs(10);

/// Makes an image a kernel device through the server at `address`. Where none answers, starts one that ends when
/// nothing is attached any more; `options` (cache options, as on the command line) reach only a server started here.
pub(crate) async fn attach(address: &str, options: &[OsString], request: &AttachRequest) -> Result<Attached> {
    let began = Instant::now();
    let client = Client::new(address)?;
    loop {
        match client.attach(request).await {
            // There is none yet, or the one there was is about to end.
            Err(error) if error.kind == Kind::NoServer && began.elapsed() < START => {
                start_and_wait(&client, address, options, began).await?;
            }
            answer => return answer,
        }
    }
}

/// The server at `address` if it has devices to speak for: one that runs, or one that is started because an earlier
/// one left devices behind. `None`: nothing is attached.
pub(crate) async fn existing(address: &str, options: &[OsString]) -> Result<Option<Client>> {
    let client = Client::new(address)?;
    if !client.is_running().await {
        if !record::left_behind(client.path()) {
            return Ok(None);
        }
        start_and_wait(&client, address, options, Instant::now()).await?;
    }
    Ok(Some(client))
}

/// Starts a server and waits until it, or another that was started at the same time, answers.
async fn start_and_wait(client: &Client, address: &str, options: &[OsString], began: Instant) -> Result<()> {
    let directory = client.path().parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory).map_err(|error| {
        Error::io("cannot make the directory of the control socket", directory.display(), &error)
    })?;
    let log = directory.join("server.log");
    let mut child = start(address, options, &log)?;
    while began.elapsed() < START {
        if client.is_running().await {
            return Ok(());
        }
        if let Ok(Some(status)) = child.try_wait() {
            // Refused: the socket still belongs to a server that is about to end, or already to one that was faster.
            if status.code() != Some(3) {
                return Err(Error::failed(format!(
                    "the server for {address} did not start: {}",
                    said(&log, status)
                )));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            child = start(address, options, &log)?;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(Error::failed(format!("the server for {address} did not answer within {} s", START.as_secs())))
}

fn start(address: &str, options: &[OsString], log: &Path) -> Result<Child> {
    let program = program()?;
    let stderr = File::create(log)
        .map_err(|error| Error::io("cannot write the server's log", log.display(), &error))?;
    Command::new(&program)
        .args(["serve", "--while-attached", "--admin", address])
        .args(options)
        .current_dir("/")
        // A service manager of the starter's has nothing to do with it.
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        // Its own group, so that Ctrl-C at the terminal of the starter is not for it.
        .process_group(0)
        .spawn()
        .map_err(|error| Error::io("cannot start the server", program.display(), &error))
}

/// The `thinorigin` beside the running program.
fn program() -> Result<PathBuf> {
    let own =
        std::env::current_exe().map_err(|error| Error::io("cannot find", "the running program", &error))?;
    Ok(own.with_file_name("thinorigin"))
}

/// What a server that ended at once left in its log.
fn said(log: &Path, status: ExitStatus) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().last().map_or_else(|| status.to_string(), str::to_owned)
}
