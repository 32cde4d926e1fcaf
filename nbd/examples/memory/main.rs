//! A server of one disk in memory: the whole of what an export has to say.
//!
//! `memory SOCKET SIZE [FILE]` serves `SIZE` bytes on a unix domain socket, or the bytes of `FILE`, as the export `disk`
//! and as the default. Blocks of 64 KiB that are all zeros are holes. With `FILE`, reads are answered from the file, not
//! from a copy in memory.

mod disk;

use disk::{Disk, One};
use std::fs::File;
use std::sync::Arc;
use thinorigin_nbd::{Limits, Server};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(socket), Some(size)) = (args.next(), args.next().and_then(|size| size.parse().ok())) else {
        eprintln!("usage: memory SOCKET SIZE [FILE]");
        std::process::exit(2);
    };
    let file = args.next().map(File::open).transpose()?;
    let size = file.as_ref().map(File::metadata).transpose()?.map_or(size, |metadata| metadata.len());
    let server = Server::new(Arc::new(One(Arc::new(Disk::open(size, file)?))), Limits::default());
    let listener = UnixListener::bind(&socket)?;
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn({
        let shutdown = shutdown.clone();
        async move {
            terminate.recv().await;
            shutdown.cancel();
        }
    });
    eprintln!("ready: {size} bytes on {socket}");
    server.serve(listener.into(), shutdown).await?;
    std::fs::remove_file(&socket)
}
