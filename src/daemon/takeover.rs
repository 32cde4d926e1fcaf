//! Devices that an earlier server left behind: found, served again, or let go. And devices of this one whose sockets
//! ended.

use super::api::Attached;
use super::attachments::{Attachments, BACKEND, Live, backend, blocking, describe, timers};
use super::handover;
use super::record::Record;
use crate::error::Result;
use crate::image::Image;
use backends::Location;
use futures_util::{StreamExt, stream};
use nbd::kernel::{self, Connect, Device};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often a device whose image cannot be opened is tried again.
const RESCUE: Duration = Duration::from_secs(5);

/// A device without a server; reads of it wait.
#[derive(Clone, Debug)]
pub(super) struct Stranded {
    pub(super) record: Record,
    pub(super) device: Device,
    /// When it was found.
    since: SystemTime,
}

impl Attachments {
    /// Finds the devices that an earlier server left behind, and those of the sockets `passed` by the service manager that
    /// it left for them; lets go of what no record explains. Waits for no image:
    /// [`keep_rescuing`](Self::keep_rescuing) serves them again.
    pub(crate) async fn adopt(&self, passed: Vec<OwnedFd>) {
        let _changing = self.changing.lock().await;
        let mut left = handover::take(self.records.directory(), passed);
        let mut devices = match blocking(|| kernel::devices("")).await {
            Ok(devices) => devices,
            Err(error) => {
                tracing::debug!("no devices to take over: {error}");
                return;
            }
        };
        for record in self.records.load() {
            let Some(position) = devices.iter().position(|device| record.is_of(device)) else {
                self.records.remove(record.index);
                continue;
            };
            let device = devices.swap_remove(position);
            if let Some(links) = left.remove(&record.index) {
                self.left().insert(record.index, links);
            }
            self.stranded()
                .insert(record.request.key.clone(), Stranded { record, device, since: SystemTime::now() });
            self.usage.send_modify(|usage| usage.uses += 1);
        }
        for device in devices.into_iter().filter(|device| device.backend().starts_with(BACKEND)) {
            let index = device.index();
            match blocking(move || device.disconnect_unused()).await {
                Ok(()) => tracing::warn!("/dev/nbd{index}: let go of a device that no record explains"),
                Err(error) => {
                    tracing::error!("/dev/nbd{index}: no record explains this device of ours: {error}");
                }
            }
        }
    }

    /// Serves the stranded devices again, as soon as their images can be opened, and gives devices new sockets for those
    /// that ended; tries every [`RESCUE`]. Never ends.
    pub(crate) async fn keep_rescuing(&self) {
        loop {
            let stranded: Vec<_> = self.stranded().values().cloned().collect();
            let rescues = stranded.into_iter().map(|stranded| async move {
                let device = stranded.device.path().to_owned();
                if let Err(error) = self.rescue(stranded).await {
                    tracing::warn!("{}: cannot take over yet: {error}", device.display());
                }
            });
            stream::iter(rescues).buffer_unordered(usize::MAX).collect::<()>().await;
            self.mend().await;
            tokio::time::sleep(RESCUE).await;
        }
    }

    /// Serves a stranded device again, if its image can be opened now.
    pub(super) async fn rescue(&self, stranded: Stranded) -> Result<()> {
        let key = stranded.record.request.key.clone();
        let image = self.open_image(&stranded.record.request).await?;
        let _changing = self.changing.lock().await;
        // Meanwhile it may have been detached, or served again because somebody asked for it.
        if self.stranded().contains_key(&key) {
            self.serve_again(stranded, &image).await?;
        }
        Ok(())
    }

    /// Serves a stranded device again, with `changing` held.
    pub(super) async fn serve_again(
        &self,
        Stranded { record, device, .. }: Stranded,
        image: &Arc<Image>,
    ) -> Result<Attached> {
        let patience = self.patience(&record.request)?;
        let links = self.left().remove(&record.index).unwrap_or_default();
        let (kernel_ends, serving) = self.serve(image, patience, links)?;
        let attached = describe(&record.request.key, &device, image);
        let connect = Connect { backend: device.backend().to_owned(), ..timers(patience) };
        // Where every socket was left, reads are under way: the device is not touched but for a patience that has changed.
        if !kernel_ends.is_empty() || device.request_timeout() != Some(connect.request_timeout) {
            blocking(move || device.reconnect(&connect, &kernel_ends)).await?;
        }
        tracing::info!("{}: took over {}", attached.device, attached.location);
        self.stranded().remove(&record.request.key);
        self.live().insert(attached.key.clone(), Live { attached: attached.clone(), serving });
        Ok(attached)
    }

    /// Gives devices new sockets for those that ended, as when this process stood still for longer than the kernel's timer.
    async fn mend(&self) {
        let _changing = self.changing.lock().await;
        let mut broken = Vec::new();
        for (key, Live { attached, serving }) in self.live().iter_mut() {
            if serving.lost() > 0 {
                broken.push((key.clone(), Device::open(attached.index), timers(serving.patience)));
            }
        }
        for (key, device, connect) in broken {
            let path = device.path().display().to_string();
            if !device.connected() {
                tracing::error!("{path}: somebody else has disconnected this device");
                self.live().remove(&key);
                self.records.remove(device.index());
                self.usage.send_modify(|usage| usage.uses -= 1);
                continue;
            }
            let replaced = self.live().get_mut(&key).map(|live| live.serving.replace_lost());
            let connect = Connect { backend: device.backend().to_owned(), ..connect };
            let mended = match replaced {
                Some(Ok(kernel_ends)) => blocking(move || device.reconnect(&connect, &kernel_ends)).await,
                Some(Err(error)) => Err(error),
                None => continue,
            };
            match mended {
                Ok(()) => tracing::warn!("{path}: sockets that ended were replaced"),
                Err(error) => tracing::error!("{path}: sockets ended and cannot be replaced yet: {error}"),
            }
        }
    }
}

impl Stranded {
    /// What can be said without opening the image.
    pub(super) fn describe(&self) -> Attached {
        let Record { index, size, request } = &self.record;
        let location = request.location.parse::<Location>();
        Attached {
            key: request.key.clone(),
            device: self.device.path().display().to_string(),
            index: *index,
            location: location.map_or_else(|_| String::new(), |location| location.to_string()),
            format: request.format.clone().unwrap_or_default(),
            pin: request.pin.clone().unwrap_or_default(),
            size: *size,
            serving: false,
            progress: None,
            waiting: None,
            silent_since: Some(humantime::format_rfc3339_seconds(self.since).to_string()),
        }
    }
}

impl Record {
    /// Whether `device`, which is connected, is the one this was written of. Linux before 5.14 does not keep what the
    /// device was called; there, number and size must do.
    fn is_of(&self, device: &Device) -> bool {
        let called = match device.backend() {
            "" => device.size() == self.size,
            called => called == backend(&self.request.key),
        };
        called && device.index() == self.index
    }
}
