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
async fn existing(address: &str, options: &[OsString]) -> Result<Option<Client>> {
    let client = Client::new(address)?;
    if !client.is_running().await {
        if !record::left_behind(client.path()) {
            return Ok(None);
        }
        start_and_wait(&client, address, options, Instant::now()).await?;
    }
    Ok(Some(client))
}

/// What the server that [`existing`] finds answers to `ask`. One that ends before it answers had nothing to speak for any
/// more, or has left it to another. `None`: nothing is attached.
pub(crate) async fn ask_existing<T>(
    address: &str,
    options: &[OsString],
    ask: impl AsyncFn(Client) -> Result<T>,
) -> Result<Option<T>> {
    let began = Instant::now();
    loop {
        let Some(client) = existing(address, options).await? else { return Ok(None) };
        match ask(client).await {
            Err(error) if error.kind == Kind::NoServer && began.elapsed() < START => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            answer => return answer.map(Some),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn a_server_that_ends_before_it_answers_has_nothing_attached() {
        for hears in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("admin.sock");
            let listener = UnixListener::bind(&path).unwrap();
            let address = format!("unix:{}", path.display());
            // It says that it is well, and is gone: before the next request comes, or when it has.
            let server = tokio::spawn(async move {
                let (mut socket, _) = listener.accept().await.unwrap();
                assert!(socket.read(&mut [0; 4096]).await.unwrap() > 0);
                let next = hears.then_some(listener);
                let well = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                socket.write_all(well).await.unwrap();
                if let Some(listener) = next {
                    let (mut socket, _) = listener.accept().await.unwrap();
                    drop(listener);
                    assert!(socket.read(&mut [0; 4096]).await.unwrap() > 0);
                }
            });
            let ask = async |client: Client| client.attached().await;
            assert!(ask_existing(&address, &[], ask).await.unwrap().is_none());
            server.await.unwrap();
        }
    }
}
