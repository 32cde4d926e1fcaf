//! Templates as loop devices: the simplest thing that behaves as the daemon does.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use thinorigin_sr::{Content, Extent, OriginDevice, OriginError, Origins, Outcome, Pinned, Probed};
use uuid::Uuid;

/// Which template is which file is kept in notes, and which file has a loop device the kernel knows. No two templates
/// may be of one file.
pub(crate) struct Loops {
    directory: PathBuf,
}

impl Loops {
    pub(crate) fn new(directory: &Path) -> Self {
        fs::create_dir_all(directory).expect("a directory for the templates");
        Self { directory: directory.into() }
    }

    fn note(&self, template: Uuid) -> PathBuf {
        self.directory.join(template.to_string())
    }
}

fn failed(what: &str, e: impl std::fmt::Display) -> OriginError {
    OriginError::new(format!("{what}: {e}"))
}

fn run(command: &str, arguments: &[&str]) -> Result<String, OriginError> {
    let output = Command::new(command).args(arguments).output().map_err(|e| failed(command, e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().into());
    }
    Err(failed(command, String::from_utf8_lossy(&output.stderr).trim()))
}

impl Origins for Loops {
    fn probe(&mut self, location: &str) -> Result<Probed, OriginError> {
        let metadata = fs::metadata(location).map_err(|e| failed(location, e))?;
        Ok(Probed {
            virtual_size: metadata.len(),
            format: "raw".into(),
            identity: format!("{} {}", metadata.len(), metadata.mtime()),
            location: location.into(),
        })
    }

    fn extents(&mut self, location: &str, identity: &str) -> Result<Vec<Extent>, OriginError> {
        let probed = self.probe(location)?;
        if probed.identity != identity {
            return Err(failed(location, "it is not the version that was introduced"));
        }
        let length = probed.virtual_size;
        let all =
            Extent { start: 0, length, depth: 0, present: true, zero: false, data: true, compressed: false };
        Ok(vec![all])
    }

    fn attach(&mut self, template: Uuid, image: Pinned<'_>) -> Result<OriginDevice, OriginError> {
        let location = image.location;
        if self.probe(location)?.identity != image.identity {
            return Err(failed(location, "it is not the version that was introduced"));
        }
        // The note first: whatever dies after it, a loop device has a note.
        fs::write(self.note(template), location).map_err(|e| failed("note", e))?;
        if let Some((_, device)) = self.attached()?.into_iter().find(|(uuid, _)| *uuid == template) {
            return Ok(device);
        }
        let path = run("losetup", &["--find", "--show", "--read-only", location])?;
        let size = fs::metadata(location).map_err(|e| failed(location, e))?.len();
        Ok(OriginDevice { path: path.into(), size })
    }

    fn detach(&mut self, template: Uuid) -> Result<Outcome, OriginError> {
        let Some((_, device)) = self.attached()?.into_iter().find(|(uuid, _)| *uuid == template) else {
            return Ok(Outcome::Unchanged);
        };
        run("losetup", &["--detach", &device.path.to_string_lossy()])?;
        fs::remove_file(self.note(template)).map_err(|e| failed("note", e))?;
        Ok(Outcome::Changed)
    }

    fn content(&mut self, template: Uuid) -> Result<Content, OriginError> {
        let device = self.attached()?.into_iter().find(|(uuid, _)| *uuid == template);
        let (_, device) = device.ok_or_else(|| OriginError::new("the template is not attached"))?;
        let data = std::iter::once(0..device.size).collect();
        Ok(Content { data, stored: device.size, local: device.size })
    }

    fn attached(&mut self) -> Result<Vec<(Uuid, OriginDevice)>, OriginError> {
        let mut attached = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(|e| failed("notes", e))? {
            let name = entry.map_err(|e| failed("notes", e))?.file_name();
            let name = name.to_string_lossy();
            let (Ok(template), Ok(location)) =
                (Uuid::try_parse(&name), fs::read_to_string(self.directory.join(&*name)))
            else {
                continue;
            };
            let arguments = ["--associated", &location, "--output", "NAME", "--noheadings"];
            if let Some(path) = run("losetup", &arguments)?.lines().next() {
                let size = fs::metadata(&location).map_err(|e| failed(&location, e))?.len();
                attached.push((template, OriginDevice { path: path.trim().into(), size }));
            }
        }
        Ok(attached)
    }
}
