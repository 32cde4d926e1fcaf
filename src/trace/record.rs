//! Writing down what is read of a disk.

use super::{GRAIN, MAX_TOUCHES, Touch, Trace};
use crate::error::{Error, Result};
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often the file is written while something is read.
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// How long after one another two readings of neighbouring places count as one, in milliseconds.
const TOGETHER: u64 = 20;

/// Notes first readings, and keeps a file of them. Two seconds of them may be missing from the file if the process is
/// killed; the file is whole at any time.
#[derive(Debug)]
pub(crate) struct Recorder {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    trace: Trace,
    began: Option<Instant>,
    /// A bit for each grain that was read.
    seen: Vec<u64>,
    /// Whether something was noted that is not in the file.
    changed: bool,
}

impl Recorder {
    /// Begins a trace of a disk of `size` bytes in the file `path`, which is replaced.
    pub(crate) fn begin(path: PathBuf, size: u64) -> Result<Arc<Recorder>> {
        let words = usize::try_from(size.div_ceil(GRAIN * 64))
            .map_err(|_| Error::failed("a disk too large to be traced"))?;
        let trace = Trace { size, touches: Vec::new() };
        let state = State { trace, began: None, seen: vec![0; words], changed: true };
        let recorder = Arc::new(Recorder { path, state: Mutex::new(state) });
        recorder.save()?;
        let weak = Arc::downgrade(&recorder);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SAVE_EVERY).await;
                let Some(recorder) = weak.upgrade() else { return };
                let saved = tokio::task::spawn_blocking(move || recorder.save()).await;
                if let Ok(Err(error)) = saved {
                    tracing::warn!("{error}");
                }
            }
        });
        Ok(recorder)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in there is left half changed by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that `len` bytes at `start` are read.
    pub(crate) fn note(&self, start: u64, len: u64) {
        self.state().note(start..start + len);
    }

    /// Writes the file, if there is something new. May wait for the disk.
    pub(crate) fn save(&self) -> Result<()> {
        let mut state = self.state();
        if !std::mem::take(&mut state.changed) {
            return Ok(());
        }
        let text = state.trace.text();
        drop(state);
        let failed =
            |error: std::io::Error| Error::io("the trace cannot be written", self.path.display(), &error);
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let temporary = directory.join(format!(".{name}.{}", std::process::id()));
        let written = std::fs::File::create(&temporary).and_then(|mut file| file.write_all(text.as_bytes()));
        written.and_then(|()| std::fs::rename(&temporary, &self.path)).map_err(failed)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Err(error) = self.save() {
            tracing::warn!("{error}");
        }
    }
}

impl State {
    fn note(&mut self, range: Range<u64>) {
        let began = *self.began.get_or_insert_with(Instant::now);
        for grain in range.start / GRAIN..range.end.min(self.trace.size).div_ceil(GRAIN) {
            let (word, bit) = (grain / 64, 1 << (grain % 64));
            let Some(word) = usize::try_from(word).ok().and_then(|word| self.seen.get_mut(word)) else {
                return;
            };
            if *word & bit != 0 {
                continue;
            }
            *word |= bit;
            let after = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let start = grain * GRAIN;
            let len = GRAIN.min(self.trace.size - start);
            let touches = &mut self.trace.touches;
            let full = touches.len() == MAX_TOUCHES;
            match touches.last_mut() {
                Some(last) if last.start + last.len == start && after <= last.after + TOGETHER => {
                    last.len += len;
                }
                _ if full => return,
                _ => touches.push(Touch { after, start, len }),
            }
            self.changed = true;
        }
    }
}
