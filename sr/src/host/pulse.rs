//! Whether block devices answer.
//!
//! A read of a device that hangs cannot be interrupted, and a process with such a thread does not end before the read does.
//! So each device is read by a process of its own, which is left to itself when it is late.

use super::system::{failed, line, sysfs};
use crate::dm::{DeviceNumber, SECTOR};
use crate::error::{Error, Result};
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long to wait between looks.
const LOOK: Duration = Duration::from_millis(5);

/// Reads under way, and reads that have ended since the device was made (Linux, Documentation/block/stat.rst).
struct Pulse {
    under_way: u64,
    ended: u64,
}

fn pulse(device: DeviceNumber) -> Result<Pulse> {
    let word = |file: &str, index: usize| -> Result<u64> {
        let text = line(&sysfs(device).join(file))?;
        Ok(text.split_ascii_whitespace().nth(index).and_then(|word| word.parse().ok()).unwrap_or_default())
    };
    Ok(Pulse { under_way: word("inflight", 0)?, ended: word("stat", 0)? })
}

struct Probe {
    device: DeviceNumber,
    first: Pulse,
    reader: Option<Child>,
    quiet: bool,
}

impl Probe {
    /// Reads a sector somewhere in `data`: always the same one would be in a cache and tell nothing.
    fn start(device: DeviceNumber, data: &Range<u64>) -> Result<Self> {
        let first = pulse(device)?;
        let sectors = (data.end - data.start) / SECTOR;
        let sector = data.start / SECTOR + Uuid::new_v4().as_u64_pair().1 % sectors.max(1);
        let path = device.dm_node();
        let reader = Command::new("dd")
            .arg(format!("if={}", path.display()))
            .args(["of=/dev/null", "bs=512", "count=1", "iflag=direct", &format!("skip={sector}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed("read", &path))?;
        Ok(Self { device, first, reader: Some(reader), quiet: false })
    }

    /// Whether the device has answered: to the probe, with whatever, and to all that was asked of it before.
    fn has_answered(&mut self) -> Result<bool> {
        if let Some(reader) = &mut self.reader
            && reader.try_wait().map_err(|e| Error::failed("cannot wait for 'dd'").because(e))?.is_some()
        {
            self.reader = None;
        }
        if !self.quiet {
            let now = pulse(self.device)?;
            let mine = u64::from(self.reader.is_some());
            self.quiet =
                now.under_way <= mine || now.ended.saturating_sub(self.first.ended) > self.first.under_way;
        }
        Ok(self.quiet && self.reader.is_none())
    }
}

/// Of each device, whether it answers within `patience`. The ranges are where there is something to read, in bytes.
pub(super) fn answers(devices: &[(DeviceNumber, Range<u64>)], patience: Duration) -> Result<Vec<bool>> {
    let began = Instant::now();
    let mut probes = Vec::new();
    for (device, data) in devices {
        probes.push(Probe::start(*device, data)?);
    }
    loop {
        let mut answers = Vec::new();
        for probe in &mut probes {
            answers.push(probe.has_answered()?);
        }
        if answers.iter().all(|&answers| answers) || began.elapsed() >= patience {
            for child in probes.iter_mut().filter_map(|probe| probe.reader.as_mut()) {
                // It ends when its read does, and is not waited for.
                child.kill().ok();
            }
            return Ok(answers);
        }
        std::thread::sleep(LOOK);
    }
}
