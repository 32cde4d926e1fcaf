//! LVM by its command.

use super::{Found, Lvm, PoolSpec, report};
use crate::error::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The first LVM that can keep a volume from being activated at boot (`--setautoactivation`).
const AUTOACTIVATION: (u32, u32, u32) = (2, 3, 12);

/// LVM by its command.
#[derive(Debug)]
pub struct LvmCommand {
    /// Whether udev runs, and so LVM may wait for it and ask it.
    udev: bool,
    autoactivation: Option<bool>,
    /// The file that is locked while an LVM of ours runs.
    lock: PathBuf,
}

impl LvmCommand {
    /// LVM, with its lock under `run` (`/run/thinorigin`).
    pub fn new(run: &Path) -> Self {
        Self {
            lock: run.join("lock/lvm"),
            udev: Path::new("/run/udev/control").exists() && std::env::var_os("DM_DISABLE_UDEV").is_none(),
            autoactivation: None,
        }
    }

    /// The lock, as what an LVM is given for its stdin.
    ///
    /// An LVM goes on when the `smctl` that started it is killed, and what recovery sees meanwhile is half of what it
    /// will have done. LVM closes every file that it inherits but the first three, so the lock is its stdin: it is held
    /// until the process has ended, whoever waits for that.
    fn locked(&self) -> Result<File> {
        let failed = |e: io::Error| Error::failed(format!("cannot lock {}", self.lock.display())).because(e);
        if let Some(directory) = self.lock.parent() {
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        let mut options = OpenOptions::new();
        let file =
            options.create(true).truncate(false).read(true).write(true).open(&self.lock).map_err(failed)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
        Ok(file)
    }

    fn run(&self, devices: &[PathBuf], arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("lvm");
        command
            .args(arguments)
            .args(["--config", &settings(devices, self.udev)])
            // An interrupt at the terminal is for smctl, which lets LVM end what it has begun.
            .process_group(0)
            .stdin(self.locked()?)
            .env("LC_ALL", "C")
            .env("LVM_SUPPRESS_FD_WARNINGS", "1");
        tracing::debug!(?arguments, "lvm");
        let output = command.output().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::failed(
                "the command 'lvm' is missing: install the packages lvm2 and thin-provisioning-tools",
            ),
            _ => Error::failed("cannot run 'lvm'").because(e),
        })?;
        if output.status.success() {
            return Ok(output);
        }
        Err(Error::failed(format!("LVM could not {}: {}", arguments.join(" "), complaint(&output.stderr))))
    }

    fn version(&self) -> Result<(u32, u32, u32)> {
        let output = self.run(&[], &["version"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        version(&text).ok_or_else(|| Error::failed("cannot tell the version of LVM"))
    }

    /// Whether this LVM can keep a volume from being activated by anyone but us.
    fn knows_autoactivation(&mut self) -> Result<bool> {
        let known = match self.autoactivation {
            Some(known) => known,
            None => self.version()? >= AUTOACTIVATION,
        };
        self.autoactivation = Some(known);
        Ok(known)
    }

    fn create(&mut self, devices: &[PathBuf], fixed: &[&str], tags: &[String], vg: &str) -> Result<()> {
        let mut arguments = fixed.to_vec();
        for tag in tags {
            arguments.extend(["--addtag", tag]);
        }
        arguments.push(vg);
        self.run(devices, &arguments).map(drop)
    }

    /// Keeps a new pool from being activated at boot, for which `lvcreate` has no option.
    fn keep_inactive(&mut self, devices: &[PathBuf], vg: &str, lv: &str) -> Result<()> {
        if self.knows_autoactivation()? {
            self.run(devices, &["lvchange", "-q", "--setautoactivation", "n", &volume(vg, lv)])?;
        }
        Ok(())
    }
}

impl Lvm for LvmCommand {
    fn find(&mut self, devices: &[PathBuf]) -> Result<Found> {
        let mut arguments = vec!["fullreport", "--reportformat", "json", "--units", "b", "--nosuffix"];
        for (kind, columns) in report::COLUMNS {
            arguments.extend(["--configreport", kind, "-o", columns]);
        }
        report::parse(&self.run(devices, &arguments)?.stdout)
    }

    fn create_group(&mut self, devices: &[PathBuf], vg: &str, tags: &[String]) -> Result<()> {
        // The devices were looked at and found empty, so `-y` answers no question that matters.
        let mut arguments = vec!["vgcreate", "-q", "-y"];
        if self.knows_autoactivation()? {
            arguments.extend(["--setautoactivation", "n"]);
        }
        for tag in tags {
            arguments.extend(["--addtag", tag]);
        }
        arguments.push(vg);
        let paths: Vec<_> = devices.iter().map(|path| path.to_string_lossy()).collect();
        arguments.extend(paths.iter().map(AsRef::<str>::as_ref));
        self.run(devices, &arguments).map(drop)
    }

    fn create_linear(
        &mut self,
        devices: &[PathBuf],
        vg: &str,
        lv: &str,
        size: u64,
        tags: &[String],
    ) -> Result<()> {
        let size = bytes(size);
        let mut fixed =
            vec!["lvcreate", "-q", "-y", "--type", "linear", "-L", &size, "-n", lv, "-W", "y", "-Z", "y"];
        if self.knows_autoactivation()? {
            fixed.extend(["--setautoactivation", "n"]);
        }
        self.create(devices, &fixed, tags, vg)
    }

    fn create_pool(&mut self, devices: &[PathBuf], vg: &str, pool: &PoolSpec, tags: &[String]) -> Result<()> {
        let (size, metadata, chunk) = (bytes(pool.size), bytes(pool.metadata), bytes(pool.chunk));
        let fixed = [
            "lvcreate",
            "-q",
            "-y",
            "--type",
            "thin-pool",
            "-L",
            &size,
            "--poolmetadatasize",
            &metadata,
            "-c",
            &chunk,
            "-Z",
            "y",
            "--discards",
            "passdown",
            "-n",
            &pool.name,
        ];
        self.create(devices, &fixed, tags, vg)?;
        self.keep_inactive(devices, vg, &pool.name)
    }

    fn extend(&mut self, devices: &[PathBuf], vg: &str, lv: &str, size: u64) -> Result<()> {
        self.run(devices, &["lvextend", "-q", "-L", &bytes(size), &volume(vg, lv)]).map(drop)
    }

    fn extend_metadata(&mut self, devices: &[PathBuf], vg: &str, pool: &str, size: u64) -> Result<()> {
        let arguments = ["lvextend", "-q", "--poolmetadatasize", &bytes(size), &volume(vg, pool)];
        self.run(devices, &arguments).map(drop)
    }

    fn reduce(&mut self, devices: &[PathBuf], vg: &str, lv: &str, size: u64) -> Result<()> {
        self.run(devices, &["lvreduce", "-q", "-y", "-f", "-L", &bytes(size), &volume(vg, lv)]).map(drop)
    }

    fn activate(&mut self, devices: &[PathBuf], vg: &str, lv: &str) -> Result<()> {
        self.run(devices, &["lvchange", "-q", "-a", "y", "-K", &volume(vg, lv)]).map(drop)
    }

    fn deactivate(&mut self, devices: &[PathBuf], vg: &str, lv: &str) -> Result<()> {
        self.run(devices, &["lvchange", "-q", "-a", "n", &volume(vg, lv)]).map(drop)
    }

    fn remove_volume(&mut self, devices: &[PathBuf], vg: &str, lv: &str) -> Result<()> {
        self.run(devices, &["lvremove", "-q", "-y", &volume(vg, lv)]).map(drop)
    }

    fn remove_group(&mut self, devices: &[PathBuf], vg: &str) -> Result<()> {
        self.run(devices, &["vgremove", "-q", vg]).map(drop)
    }

    fn remove_label(&mut self, device: &Path) -> Result<()> {
        let devices = [device.to_path_buf()];
        self.run(&devices, &["pvremove", "-q", &device.to_string_lossy()]).map(drop)
    }
}

fn bytes(size: u64) -> String {
    format!("{size}b")
}

fn volume(vg: &str, lv: &str) -> String {
    format!("{vg}/{lv}")
}

/// What LVM is told with every request.
///
/// The filter accepts the devices and nothing else. LVM accepts a device if any of its names passes, so a list of
/// what is allowed holds, where a list of what is not could be passed by under another name.
fn settings(devices: &[PathBuf], udev: bool) -> String {
    let mut filter = String::new();
    for device in devices {
        filter.push_str(&format!("\"a|^{}$|\",", pattern(&device.to_string_lossy())));
    }
    let mut settings = format!(
        "devices {{ use_devicesfile=0 hints=\"none\" scan_lvs=0 global_filter=[{filter}\"r|.*|\"] }} \
         activation {{ monitoring=0 thin_pool_autoextend_threshold=100 error_when_full=1 }} \
         global {{ use_lvmpolld=0 event_activation=0 }} log {{ prefix=\"\" indent=0 }}"
    );
    if !udev {
        settings.push_str(
            " devices { obtain_device_list_from_udev=0 external_device_info_source=\"none\" \
             multipath_component_detection=0 md_component_detection=0 } \
             activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 }",
        );
    }
    settings
}

/// A regular expression that matches `path` only.
fn pattern(path: &str) -> String {
    let mut pattern = String::new();
    for letter in path.chars() {
        if !letter.is_ascii_alphanumeric() && !"/_-".contains(letter) {
            // Configuration strings take one backslash away.
            pattern.push_str("\\\\");
        }
        pattern.push(letter);
    }
    pattern
}

/// The last thing that LVM said, without its warnings.
fn complaint(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<_> =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("WARNING")).collect();
    if lines.is_empty() {
        return "it does not say why".into();
    }
    lines.join("; ").trim_end_matches('.').into()
}

/// The version in the output of `lvm version`, whose first line is `LVM version: 2.03.16(2) (2022-05-18)`.
fn version(text: &str) -> Option<(u32, u32, u32)> {
    let line = text.lines().find(|line| line.contains("LVM version:"))?;
    let number = line.split(':').nth(1)?.trim().split('(').next()?;
    let mut parts = number.split('.');
    let mut part = || parts.next()?.parse().ok();
    Some((part()?, part()?, part()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_allows_the_devices_only() {
        let text = settings(&["/dev/sda".into(), "/dev/disk/by-id/a.b".into()], true);
        assert!(text.contains(r#"global_filter=["a|^/dev/sda$|","a|^/dev/disk/by-id/a\\.b$|","r|.*|"]"#));
        assert!(!text.contains("udev_sync"));
        assert!(settings(&[], false).contains("udev_sync=0"));
        assert!(settings(&[], false).contains(r#"global_filter=["r|.*|"]"#));
    }

    #[test]
    fn versions() {
        let text = "  LVM version:     2.03.16(2) (2022-05-18)\n  Library version: 1.02.185 (2022-05-18)\n";
        assert_eq!(version(text), Some((2, 3, 16)));
        assert!(version(text).unwrap() >= AUTOACTIVATION);
        assert_eq!(version("LVM version: 2.2"), None);
        assert_eq!(version(""), None);
    }

    #[test]
    fn complaints_leave_out_warnings() {
        assert_eq!(
            complaint(b"  WARNING: x\n  Volume group \"a\" not found.\n"),
            "Volume group \"a\" not found"
        );
        assert_eq!(complaint(b""), "it does not say why");
    }
}
