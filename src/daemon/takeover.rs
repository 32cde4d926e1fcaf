//! Devices that an earlier server left behind: found, served again, or let go.

use super::api::Attached;
use super::attachments::{Attachments, BACKEND, Live, backend, blocking, describe, timers};
use super::record::Record;
use crate::error::Result;
use crate::image::Image;
use backends::Location;
use futures_util::{StreamExt, stream};
use nbd::kernel::{self, Connect, Device};
use std::sync::Arc;
use std::time::Duration;

/// How often a device whose image cannot be opened is tried again.
const RESCUE: Duration = Duration::from_secs(5);

/// A device without a server; reads of it wait.
#[derive(Clone, Debug)]
pub(super) struct Stranded {
    pub(super) record: Record,
    pub(super) device: Device,
}

impl Attachments {
    /// Finds the devices that an earlier server left behind, and lets go of those that no record explains. Waits for
    /// no image: [`keep_rescuing`](Self::keep_rescuing) serves them again.
    pub(crate) async fn adopt(&self) {
        let _changing = self.changing.lock().await;
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
            self.stranded().insert(record.request.key.clone(), Stranded { record, device });
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

    /// Serves the stranded devices again, as soon as their images can be opened; tries every [`RESCUE`]. Never ends.
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
            tokio::time::sleep(RESCUE).await;
        }
    }

    async fn rescue(&self, stranded: Stranded) -> Result<()> {
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
        Stranded { record, device }: Stranded,
        image: &Arc<Image>,
    ) -> Result<Attached> {
        let patience = self.patience(&record.request)?;
        let (kernel_ends, serving) = self.serve(image, patience)?;
        let attached = describe(&record.request.key, &device, image);
        let connect = Connect { backend: device.backend().to_owned(), ..timers(patience) };
        blocking(move || device.reconnect(&connect, &kernel_ends)).await?;
        tracing::info!("{}: took over {}", attached.device, attached.location);
        self.stranded().remove(&record.request.key);
        self.live().insert(attached.key.clone(), Live { attached: attached.clone(), serving });
        Ok(attached)
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
