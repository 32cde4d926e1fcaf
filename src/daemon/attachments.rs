//! Images that are kernel devices, served by this process.
//!
//! Each device has a few socket pairs: the kernel gets one end of each, this process answers on the other. The
//! device belongs to the kernel and outlives this process: when it ends, or dies, reads wait in the kernel for
//! [`DEAD_TIMEOUT`] for a server that takes over with [`Attachments::adopt`]. Where a service manager keeps the sockets
//! meanwhile, the kernel does not even notice ([`handover`]).

use super::api::{AttachRequest, Attached, Content};
use super::content;
use super::handover;
use super::record::{Record, Records};
use super::takeover::Stranded;
use crate::error::{Error, Result};
use crate::export::{ImageExport, READ_DEADLINE};
use crate::image::{Gate, Image, OpenOptions};
use crate::prefetch::Wishes;
use nbd::Link;
use nbd::kernel::{self, Connect, Device};
use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Sockets for each device: one hardware queue each, and a second one so that the kernel can retry elsewhere.
const SOCKETS: usize = 2;
/// How much longer than the server's own patience the kernel's request timer is: a reply slower than that costs a socket.
const MARGIN: Duration = Duration::from_secs(5);
/// The most patience there is.
const MOST_PATIENCE: u64 = 3600;
/// How long the kernel keeps requests waiting for a new server after the last one died.
const DEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a list of the devices waits for a change of them.
const SETTLE: Duration = Duration::from_secs(2);

/// For how long a socket that is to be closed is served, if something is under way on it all the time.
const QUIET: Duration = Duration::from_secs(5);
/// What the kernel shows as the backend of our devices, followed by the key.
pub(super) const BACKEND: &str = "thinorigin:";

/// All devices this process serves.
#[derive(Debug)]
pub(crate) struct Attachments {
    pub(super) records: Records,
    options: OpenOptions,
    /// What is fetched of every image in the background.
    wishes: Wishes,
    /// For how long reads wait for a server that is away, where a request does not say.
    patience: Option<u64>,
    live: Mutex<HashMap<String, Live>>,
    /// Devices of an earlier server whose image cannot be opened at the moment, by key. Reads of them wait.
    stranded: Mutex<HashMap<String, Stranded>>,
    /// Sockets that an earlier server left between two replies, and that none of this one answers yet, by device.
    left: Mutex<HashMap<u32, Vec<Link>>>,
    /// Serialises what changes the set of devices; `live` itself is only ever locked for a moment.
    pub(super) changing: tokio::sync::Mutex<()>,
    pub(super) usage: watch::Sender<Usage>,
}

/// Whether anybody needs this server.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// Devices, and requests for devices under way.
    pub(super) uses: usize,
    /// Nothing used it for so long that it is about to end: it takes no more requests.
    ending: bool,
}

/// One use, until dropped.
struct Use<'a>(&'a watch::Sender<Usage>);

impl Drop for Use<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|usage| usage.uses -= 1);
    }
}

#[derive(Debug)]
pub(super) struct Live {
    pub(super) attached: Attached,
    pub(super) serving: Serving,
}

/// The tasks that answer a device's sockets.
#[derive(Debug)]
pub(super) struct Serving {
    export: Arc<ImageExport>,
    pub(super) patience: Option<Duration>,
    stop: CancellationToken,
    /// One for each socket. It gives its socket back when `stop` is cancelled, unless that ended before.
    tasks: JoinSet<Option<Link>>,
}

impl Serving {
    /// How many of its sockets have ended.
    pub(super) fn lost(&mut self) -> usize {
        while self.tasks.try_join_next().is_some() {}
        SOCKETS.saturating_sub(self.tasks.len())
    }

    /// Serves new sockets in place of those that have ended; returns the kernel's ends.
    pub(super) fn replace_lost(&mut self) -> Result<Vec<UnixStream>> {
        let mut kernel_ends = Vec::new();
        for _ in 0..self.lost() {
            let (kernel_end, link) =
                pair().map_err(|error| Error::failed(format!("cannot make a socket pair: {error}")))?;
            kernel_ends.push(kernel_end);
            self.answer(link);
        }
        Ok(kernel_ends)
    }

    fn answer(&mut self, link: Link) {
        let (export, stop) = (self.export.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            nbd::serve_transmission(link, export, stop).await.unwrap_or_else(|error| {
                tracing::error!("a kernel connection failed: {error}");
                None
            })
        });
    }
}

/// A new socket pair: the kernel's end and ours.
fn pair() -> std::io::Result<(UnixStream, Link)> {
    let (kernel_end, own_end) = UnixStream::pair()?;
    own_end.set_nonblocking(true)?;
    Ok((kernel_end, Link::new(tokio::net::UnixStream::from_std(own_end)?)))
}

impl Attachments {
    /// No devices yet; records are kept in `directory`, images are opened with `options`, and of each is fetched what
    /// `wishes` say.
    pub(crate) fn open(
        directory: PathBuf,
        options: OpenOptions,
        wishes: Wishes,
        patience: Option<u64>,
    ) -> Result<Arc<Self>> {
        Ok(Arc::new(Attachments {
            records: Records::open(directory)?,
            options,
            wishes,
            patience,
            live: Mutex::default(),
            stranded: Mutex::default(),
            left: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            usage: watch::Sender::default(),
        }))
    }

    /// Everything that is attached, by device number.
    pub(crate) fn list(&self) -> Vec<Attached> {
        let mut list: Vec<_> = self.live().values().map(|live| live.attached.clone()).collect();
        list.extend(self.stranded().values().map(Stranded::describe));
        list.sort_by_key(|attached| attached.index);
        list
    }

    /// Waits for the change of devices that is under way, if one is and it does not take long. A device that the kernel is
    /// about to have is in no list: who asked for it may be gone, and who looks after what he left must not miss it.
    pub(crate) async fn settled(&self) {
        let _ = tokio::time::timeout(SETTLE, self.changing.lock()).await;
    }

    /// What is served to the kernel, by device.
    pub(crate) fn exports(&self) -> Vec<(String, Arc<ImageExport>)> {
        let live = self.live();
        live.values().map(|live| (live.attached.device.clone(), live.serving.export.clone())).collect()
    }

    /// As [`list`](Self::list), with how much of each is local.
    pub(crate) async fn list_with_progress(&self) -> Vec<Attached> {
        let exports: HashMap<String, Arc<ImageExport>> =
            self.live().iter().map(|(key, live)| (key.clone(), live.serving.export.clone())).collect();
        let looks = self.list().into_iter().map(async |attached| match exports.get(&attached.key) {
            Some(export) => {
                let (progress, waiting) = (export.progress().await, export.waiting());
                let since = export.silent_since().map(humantime::format_rfc3339_seconds);
                Attached { progress, waiting, silent_since: since.map(|at| at.to_string()), ..attached }
            }
            None => attached,
        });
        futures_util::future::join_all(looks).await
    }

    /// What the image that `key` names holds. A device that waits for its image is tried at once.
    pub(crate) async fn content(&self, key: &str) -> Result<Content> {
        let stranded = self.stranded().get(key).cloned();
        if let Some(stranded) = stranded {
            self.rescue(stranded).await?;
        }
        let export = self.live().get(key).map(|live| live.serving.export.clone());
        let export =
            export.ok_or_else(|| Error::refused(format!("{key}: no image that is served has this key")))?;
        content::of(export.image()).await
    }

    /// Makes the image a device, or answers with the device that `request.key` already has. Should this be dropped
    /// half way, the device may exist without a record; it is swept by the next server's [`adopt`](Self::adopt).
    ///
    /// If who asked is `gone` before the device is begun, none is made: whoever looks after what he left may have looked
    /// already.
    pub(crate) async fn attach(&self, request: AttachRequest, gone: &CancellationToken) -> Result<Attached> {
        let _using = self.begin_use()?;
        if let Some(attached) = self.find(&request)? {
            return Ok(attached);
        }
        // Opening may take as long as a server does, and must not keep others from their devices.
        let abandoned = || Error::failed(format!("{}: who asked for it is gone", request.location));
        let image = tokio::select! {
            image = self.open_image(&request) => image?,
            () = gone.cancelled() => return Err(abandoned()),
        };
        let _changing = self.changing.lock().await;
        if gone.is_cancelled() {
            return Err(abandoned());
        }
        if let Some(attached) = self.find(&request)? {
            return Ok(attached);
        }
        let stranded = self.stranded().get(&request.key).cloned();
        if let Some(stranded) = stranded {
            return self.serve_again(stranded, &image).await;
        }
        let patience = self.patience(&request)?;
        let (kernel_ends, serving) = self.serve(&image, patience, Vec::new())?;
        let connect = Connect {
            index: request.index,
            size: device_size(&image),
            backend: backend(&request.key),
            ..timers(patience)
        };
        let device = blocking(move || kernel::connect(&connect, &kernel_ends)).await?;
        let attached = describe(&request.key, &device, &image);
        let (index, size) = (device.index(), device_size(&image));
        let record = Record { index, size, request: AttachRequest { pin: Some(image.pin()), ..request } };
        if let Err(error) = self.records.save(&record) {
            // The error to report is the first one; a device that stays is swept at the next start.
            let _ = blocking(move || device.disconnect()).await;
            return Err(error);
        }
        tracing::info!("{}: attached {} ({} bytes)", attached.device, attached.location, attached.size);
        self.usage.send_modify(|usage| usage.uses += 1);
        self.live().insert(attached.key.clone(), Live { attached: attached.clone(), serving });
        Ok(attached)
    }

    /// The device that the key of `request` has, if it holds what is asked for.
    fn find(&self, request: &AttachRequest) -> Result<Option<Attached>> {
        let Some(attached) = self.live().get(&request.key).map(|live| live.attached.clone()) else {
            return Ok(None);
        };
        match request.pin.as_ref().is_none_or(|pin| *pin == attached.pin) {
            true => Ok(Some(attached)),
            false => Err(changed(&attached.location)),
        }
    }

    /// Detaches what `key` names; `None` if nothing does. Refuses while somebody uses the device.
    pub(crate) async fn detach(&self, key: &str) -> Result<Option<Attached>> {
        let _changing = self.changing.lock().await;
        let attached = self.live().get(key).map(|live| live.attached.clone());
        let Some(attached) = attached.or_else(|| self.stranded().get(key).map(Stranded::describe)) else {
            return Ok(None);
        };
        let index = attached.index;
        blocking(move || Device::open(index).disconnect_unused()).await?;
        let live = self.live().remove(key);
        self.stranded().remove(key);
        self.left().remove(&index);
        self.usage.send_modify(|usage| usage.uses -= 1);
        self.records.remove(index);
        if let Some(Live { mut serving, .. }) = live {
            serving.stop.cancel();
            while serving.tasks.join_next().await.is_some() {}
        }
        tracing::info!("{}: detached {}", attached.device, attached.location);
        Ok(Some(attached))
    }

    /// Answers what is under way and stops reading requests; where no service manager keeps the sockets, only when nothing
    /// is under way at last, for what is lost with a socket the kernel asks for again only after half a minute. The
    /// devices stay for a server that takes over, with their sockets if a service manager keeps those for it.
    pub(crate) async fn drain(&self) {
        let _changing = self.changing.lock().await;
        let drained: Vec<_> = self.live().drain().map(|(_, live)| live).collect();
        // All at once: each may take as long as a read does.
        drained.iter().for_each(|live| live.serving.stop.cancel());
        let devices = drained.len();
        let mut links: Vec<(u32, Link)> = Vec::new();
        let mut exports = HashMap::new();
        for Live { attached, mut serving } in drained {
            exports.insert(attached.index, serving.export.clone());
            while let Some(ended) = serving.tasks.join_next().await {
                links.extend(ended.ok().flatten().map(|link| (attached.index, link)));
            }
        }
        // Those that were waiting for their images are as they were found.
        let waiting: Vec<_> = self.left().drain().collect();
        links.extend(
            waiting.into_iter().flat_map(|(index, left)| left.into_iter().map(move |link| (index, link))),
        );
        let left = match handover::leave(self.records.directory(), &links) {
            Ok(0) => {
                let ends = links.into_iter().filter_map(|(index, link)| {
                    let export = exports.get(&index)?.clone();
                    Some(nbd::serve_until_quiet(link, export, QUIET))
                });
                for ended in ends.collect::<JoinSet<_>>().join_all().await {
                    ended.unwrap_or_else(|error| tracing::error!("a kernel connection failed: {error}"));
                }
                0
            }
            Ok(left) => left,
            // Some may have been left all the same, as the note says: nothing more is read of them.
            Err(error) => {
                tracing::error!("{error}");
                0
            }
        };
        if devices > 0 {
            tracing::warn!(
                "{devices} devices are left without a server, {left} of their sockets with the service manager; reads wait {} s for a server that takes over",
                DEAD_TIMEOUT.as_secs()
            );
        }
    }

    /// Waits until nothing has used this server for `linger` (at first for `patience`). From then on it takes no
    /// more requests for devices.
    pub(crate) async fn unused(&self, patience: Duration, linger: Duration) {
        let mut usage = self.usage.subscribe();
        let mut wait = patience;
        loop {
            let used = tokio::time::timeout(wait, usage.wait_for(|usage| usage.uses > 0)).await.is_ok();
            if !used
                && self.usage.send_if_modified(|usage| {
                    usage.ending = usage.uses == 0;
                    usage.ending
                })
            {
                return;
            }
            // The sender lives as long as `self`, so waiting cannot fail.
            let _ = usage.wait_for(|usage| usage.uses == 0).await;
            wait = linger;
        }
    }

    fn begin_use(&self) -> Result<Use<'_>> {
        let begun = self.usage.send_if_modified(|usage| {
            usage.uses += usize::from(!usage.ending);
            !usage.ending
        });
        begun.then(|| Use(&self.usage)).ok_or_else(|| Error::no_server("the server is about to end"))
    }

    pub(super) async fn open_image(&self, request: &AttachRequest) -> Result<Arc<Image>> {
        let format = request.format.as_deref().map(|format| {
            format.parse().map_err(|_| Error::usage(format!("{format:?} is not an image format")))
        });
        let options = OpenOptions {
            image: formats::Options { format: format.transpose()?, snapshot: request.snapshot.clone() },
            member: request.member.clone(),
            gate: Gate { allow: request.allow_reference.clone() },
            revalidate: request.revalidate || self.options.revalidate,
            ..self.options.clone()
        };
        let image = Image::open(&request.location.parse()?, &options).await?;
        match &request.pin {
            Some(pin) if *pin != image.pin() => Err(changed(&image.location().to_string())),
            _ => Ok(Arc::new(image)),
        }
    }

    /// For how long reads of the device that `request` asks for may wait; none: no longer than is usual.
    pub(super) fn patience(&self, request: &AttachRequest) -> Result<Option<Duration>> {
        match request.patience.or(self.patience) {
            Some(seconds @ 1..=MOST_PATIENCE) => Ok(Some(Duration::from_secs(seconds))),
            Some(seconds) => {
                Err(Error::usage(format!("a patience of {seconds} s: it is from 1 to {MOST_PATIENCE} s")))
            }
            None => Ok(None),
        }
    }

    /// Serves `image` on `links`, and on new socket pairs where those are too few; returns the kernel's ends of the new.
    pub(super) fn serve(
        &self,
        image: &Arc<Image>,
        patience: Option<Duration>,
        links: Vec<Link>,
    ) -> Result<(Vec<UnixStream>, Serving)> {
        let export = ImageExport::new(image.location().to_string(), image.clone())
            .with_background(self.wishes.clone(), self.options.sources.clone())
            .with_patience(patience);
        let (export, stop) = (Arc::new(export), CancellationToken::new());
        let mut serving = Serving { export, patience, stop, tasks: JoinSet::new() };
        links.into_iter().filter(Link::is_open).for_each(|link| serving.answer(link));
        let kernel_ends = serving.replace_lost()?;
        Ok((kernel_ends, serving))
    }

    pub(super) fn stranded(&self) -> MutexGuard<'_, HashMap<String, Stranded>> {
        self.stranded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn left(&self) -> MutexGuard<'_, HashMap<u32, Vec<Link>>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn live(&self) -> MutexGuard<'_, HashMap<String, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The kernel's timers for a device whose reads are answered within `patience`.
pub(super) fn timers(patience: Option<Duration>) -> Connect {
    let request_timeout = patience.unwrap_or(READ_DEADLINE).max(READ_DEADLINE) + MARGIN;
    Connect { request_timeout, dead_connection_timeout: DEAD_TIMEOUT, ..Connect::default() }
}

/// What the kernel is told a device with `key` is backed by.
pub(super) fn backend(key: &str) -> String {
    format!("{BACKEND}{key}")
}

/// Size of the device for `image`, in bytes: whole sectors.
fn device_size(image: &Image) -> u64 {
    image.virtual_size().next_multiple_of(512)
}

/// The error of an image that is not the one which was pinned.
pub(crate) fn changed(location: &str) -> Error {
    Error::failed(format!("{location}: the image has changed since it was introduced"))
}

pub(super) fn describe(key: &str, device: &Device, image: &Image) -> Attached {
    Attached {
        key: key.to_owned(),
        device: device.path().display().to_string(),
        index: device.index(),
        location: image.location().to_string(),
        format: image.format().to_string(),
        pin: image.pin(),
        size: image.virtual_size(),
        serving: true,
        progress: None,
        waiting: None,
        silent_since: None,
    }
}

/// Runs a call that the kernel may keep waiting.
pub(super) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> std::result::Result<T, kernel::Error> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) if error.is_busy() => Err(Error::refused(error.to_string())),
        Ok(Err(error)) => Err(Error::failed(error.to_string())),
        Err(_) => Err(Error::failed("a kernel call ended before its time")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_list_waits_for_a_change_that_is_under_way() {
        let directory = tempfile::tempdir().unwrap();
        let wishes = Wishes::default();
        let attachments =
            Attachments::open(directory.path().into(), OpenOptions::default(), wishes, None).unwrap();
        let changing = attachments.changing.lock().await;
        let mut settled = Box::pin(attachments.settled());
        tokio::select! {
            biased;
            () = &mut settled => panic!("it did not wait"),
            () = std::future::ready(()) => {}
        }
        drop(changing);
        settled.await;
    }

    #[test]
    fn the_kernel_waits_longer_than_any_read() {
        let patiences = [1, 24, 25, 26, 120, MOST_PATIENCE].map(|seconds| Some(Duration::from_secs(seconds)));
        for patience in [&[None][..], &patiences].concat() {
            let longest = patience.unwrap_or(READ_DEADLINE);
            assert!(timers(patience).request_timeout >= longest + MARGIN, "{patience:?}");
        }
    }
}
