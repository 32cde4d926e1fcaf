//! A disk in memory as a device of the kernel: `attach [INDEX]`, as root, where the kernel has the module `nbd`.
//!
//! `attach INDEX takeover` gives the device INDEX, whose server has died, a new server. `attach INDEX disconnect` lets go
//! of it, `attach status` lists all.

use std::io::{self, BufRead};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;
use thinorigin_nbd::kernel::{self, Connect, Device};
use thinorigin_nbd::{
    Errno, Export, ExportInfo, Extent, ExtentFlags, Failure, Link, Segment, Segments, serve_transmission,
};
use tokio_util::sync::CancellationToken;

/// Every eight bytes are their own offset; not a whole number of sectors.
struct Numbers;

impl Export for Numbers {
    fn info(&self) -> ExportInfo {
        ExportInfo { size: (64 << 20) + 10, preferred_block: 4096, description: String::new() }
    }

    fn try_read(&self, _offset: u64, _len: u32, _out: &mut Segments) -> Option<Result<(), Failure>> {
        None
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Segments, Failure> {
        // Like a server far away.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let bytes: Vec<u8> =
            (offset..offset + u64::from(len)).map(|at| (at & !7).to_be_bytes()[(at % 8) as usize]).collect();
        Ok(Segments::from_iter([Segment::Bytes(bytes.into())]))
    }

    async fn block_status(&self, _offset: u64, len: u64, _max: usize) -> Result<Vec<Extent>, Errno> {
        Ok(vec![Extent { len, flags: ExtentFlags::empty(), depth: 1, local: true }])
    }

    async fn prefetch(&self, _offset: u64, _len: u64) {}
}

/// Two served socket pairs; the kernel's ends.
fn serve() -> io::Result<[UnixStream; 2]> {
    let serve_one = || {
        let (kernel, own) = UnixStream::pair()?;
        own.set_nonblocking(true)?;
        let own = tokio::net::UnixStream::from_std(own)?;
        tokio::spawn(async move {
            let result =
                serve_transmission(Link::new(own), Arc::new(Numbers), CancellationToken::new()).await;
            eprintln!("a socket ended: {result:?}");
        });
        Ok::<_, io::Error>(kernel)
    };
    Ok([serve_one()?, serve_one()?])
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (first, verb) = (args.next(), args.next());
    if first.as_deref() == Some("status") {
        for (index, connected) in kernel::status(None)? {
            let device = Device::open(index);
            println!(
                "nbd{index}: connected {connected}, {} bytes, backend {:?}",
                device.size(),
                device.backend()
            );
        }
        return Ok(());
    }
    let index = first.map(|index| index.parse()).transpose()?;
    let connect = Connect {
        index,
        size: Numbers.info().size,
        request_timeout: Duration::from_secs(5),
        backend: "example".into(),
        ..Connect::default()
    };
    let device = match (verb.as_deref(), index) {
        (Some("disconnect"), Some(index)) => return Ok(Device::open(index).disconnect_unused()?),
        (Some("takeover"), Some(index)) => {
            let (device, sockets) = (Device::open(index), serve()?);
            device.reconnect(&connect, &sockets)?;
            device
        }
        _ => {
            let sockets = serve()?;
            tokio::task::spawn_blocking(move || kernel::connect(&connect, &sockets)).await??
        }
    };
    println!("{}", device.path().display());
    // A line, or the end of the input, ends it.
    tokio::task::spawn_blocking(|| io::stdin().lock().lines().next()).await?;
    tokio::task::spawn_blocking(move || device.disconnect_unused()).await??;
    Ok(())
}
