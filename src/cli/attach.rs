//! `thinorigin attach` and `thinorigin detach`.

use super::args::{Attach, Cache, Daemon, Detach, Reading};
use super::reading;
use crate::daemon::{AttachRequest, Attached, Client, Exported, spawn};
use crate::error::{Error, Result};
use crate::output;
use crate::size::Size;
use serde::Serialize;
use std::ffi::OsString;
use std::path::Path;

/// Makes an image a kernel device and prints the device.
pub(super) async fn attach(args: Attach, json: bool) -> Result<()> {
    require_root(&args.daemon)?;
    let location = reading::parse(&args.location)?.absolute()?;
    let index = args.device.as_deref().map(device_index).transpose()?;
    let request = AttachRequest {
        location: location.secret_form(),
        key: format!("cli:{}", uuid::Uuid::new_v4()),
        format: args.reading.format.map(|format| formats::Format::from(format).to_string()),
        snapshot: args.reading.snapshot.clone(),
        member: args.reading.member.clone(),
        allow_reference: args.reading.allow_reference.clone(),
        pin: None,
        index,
        revalidate: args.reading.cache.revalidate,
        patience: args.patience,
    };
    let attached = spawn::attach(&args.daemon.admin, &args.reading.to_args(), &request).await?;
    match json {
        true => output::json(&attached),
        false => output::line(&attached.device),
    }
}

/// A device as it is listed.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    attached: Attached,
    /// Requests that the kernel waits for; absent where it does not say.
    under_way: Option<u64>,
}

/// Lists what is attached.
pub(super) async fn attached(daemon: &Daemon, json: bool) -> Result<()> {
    require_root(daemon)?;
    let ask = async |client: Client| client.attached_with_progress().await;
    let attached = spawn::ask_existing(&daemon.admin, &[], ask).await?.unwrap_or_default();
    let listed = |attached: Attached| Listed { under_way: under_way(attached.index), attached };
    let mut listed: Vec<Listed> = attached.into_iter().map(listed).collect();
    listed.sort_by_key(|listed| listed.attached.index);
    if json {
        return output::json(&listed);
    }
    let row = |Listed { attached, under_way }: &Listed| {
        let state = if attached.serving { "serving" } else { "waiting for its image" };
        let (size, format) = (Size(attached.size).to_string(), attached.format.clone());
        let mut under_way = under_way.map(|count| count.to_string()).unwrap_or_default();
        if let Some(waiting) = attached.waiting {
            under_way.push_str(&format!(" (oldest {} s)", waiting.seconds));
        }
        let local = attached.progress.map(|progress| progress.words()).unwrap_or_default();
        let device = attached.device.clone();
        vec![device, size, format, state.to_owned(), under_way, local, attached.location.clone()]
    };
    let header = ["device", "size", "format", "state", "under way", "local", "location"];
    output::table(&header, listed.iter().map(row))
}

/// Lists what a server exports by name.
pub(super) async fn exports(daemon: &Daemon, json: bool) -> Result<()> {
    let ask = async |client: Client| client.exports().await;
    let exports = spawn::ask_existing(&daemon.admin, &[], ask).await?.unwrap_or_default();
    if json {
        return output::json(&exports);
    }
    let row = |export: &Exported| {
        let size = export.size.map(|size| Size(size).to_string()).unwrap_or_default();
        let local = export.progress.map(|progress| progress.words()).unwrap_or_default();
        let format = export.format.clone().unwrap_or_default();
        vec![export.name.clone(), size, format, local, export.location.clone()]
    };
    output::table(&["name", "size", "format", "local", "location"], exports.iter().map(row))
}

/// How many reads of a device the kernel waits for (Documentation/block/stat.rst, `inflight`).
fn under_way(index: u32) -> Option<u64> {
    let counts = std::fs::read_to_string(format!("/sys/block/nbd{index}/inflight")).ok()?;
    counts.split_whitespace().next()?.parse().ok()
}

/// Detaches a device that `attach` made.
pub(super) async fn detach(args: &Detach) -> Result<()> {
    require_root(&args.daemon)?;
    let device = args.device.display();
    let index = device_index(&args.device)?;
    let ask = async |client: Client| {
        let attached = client.attached().await?.into_iter().find(|attached| attached.index == index);
        match attached {
            Some(attached) => client.detach(&attached.key).await,
            None => Ok(None),
        }
    };
    if spawn::ask_existing(&args.daemon.admin, &[], ask).await?.flatten().is_some() {
        return Ok(());
    }
    Err(Error::refused(format!("{device}: no server has attached anything to this device")))
}

/// Only root reaches the kernel, and the server that does it by default. Another server may be open to its owner.
fn require_root(daemon: &Daemon) -> Result<()> {
    match daemon.admin == crate::daemon::ADMIN && !rustix::process::geteuid().is_root() {
        true => Err(Error::failed("attaching to the kernel needs root")),
        false => Ok(()),
    }
}

/// The number in `/dev/nbdN`.
fn device_index(device: &Path) -> Result<u32> {
    let number = device.to_str().and_then(|device| device.strip_prefix("/dev/nbd"));
    number
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| Error::usage(format!("{}: not an nbd device: use /dev/nbdN", device.display())))
}

impl Reading {
    /// What a server that is started needs of the options, as arguments again.
    fn to_args(&self) -> Vec<OsString> {
        let mut args = self.cache.to_args();
        if let Some(file) = &self.credentials {
            args.extend([
                "--credentials".into(),
                std::path::absolute(file).unwrap_or_else(|_| file.clone()).into(),
            ]);
        }
        args
    }
}

impl Cache {
    /// The options again as arguments, for a server that is started.
    pub(crate) fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["--cache-size".into(), self.size.0.to_string().into()];
        if self.no_cache {
            args.push("--no-cache".into());
        }
        if let Some(dir) = &self.dir {
            let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
            args.extend(["--cache".into(), dir.into()]);
        }
        args
    }
}
