//! How far a long command is: a bar on a terminal, else a line now and then.

use crate::size::Size;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two lines: as little at first as somebody would wait for one, and never so little that hours fill a log.
const LEAST: Duration = Duration::from_secs(5);
const MOST: Duration = Duration::from_secs(60);

/// Shows on stderr how far something is.
#[derive(Debug)]
pub(crate) enum Bar {
    /// For who looks on.
    Drawn(indicatif::ProgressBar),
    /// For a log.
    Lines(Mutex<Lines>),
}

/// What lines are made from.
#[derive(Debug)]
pub(crate) struct Lines {
    what: String,
    began: Instant,
    said: Instant,
    /// How much was done when it began, is done, and is to be done, in bytes.
    first: u64,
    done: u64,
    total: u64,
}

impl Bar {
    /// For `total` bytes of `what`: "warming".
    pub(super) fn new(total: u64, what: &str) -> Bar {
        if !std::io::stderr().is_terminal() {
            return Bar::Lines(Mutex::new(Lines::new(what, total, Instant::now())));
        }
        let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let bar = indicatif::ProgressBar::new(total).with_message(what.to_owned());
        Bar::Drawn(match indicatif::ProgressStyle::with_template(style) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        })
    }

    /// So many more bytes are done.
    pub(crate) fn add(&self, bytes: u64) {
        match self {
            Bar::Drawn(bar) => bar.inc(bytes),
            Bar::Lines(lines) => {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                let (done, total) = (lines.done + bytes, lines.total);
                say(lines.set(done, total, Instant::now()));
            }
        }
    }

    /// So many bytes of so many are done, as is found out bit by bit.
    pub(crate) fn set(&self, done: u64, total: u64) {
        match self {
            Bar::Drawn(bar) => {
                bar.set_length(total);
                bar.set_position(done);
            }
            Bar::Lines(lines) => {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.total == 0 {
                    lines.first = done;
                }
                say(lines.set(done, total, Instant::now()));
            }
        }
    }

    /// It has ended, well or not, and the command says how.
    pub(crate) fn clear(&self) {
        if let Bar::Drawn(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn say(line: Option<String>) {
    if let Some(line) = line {
        // Nothing is left to be done if stderr is closed.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

impl Lines {
    fn new(what: &str, total: u64, now: Instant) -> Lines {
        Lines { what: what.to_owned(), began: now, said: now, first: 0, done: 0, total }
    }

    /// Notes how far it is, and gives the line to say, if it is time for one.
    fn set(&mut self, done: u64, total: u64, now: Instant) -> Option<String> {
        (self.done, self.total) = (done, total);
        let time = now - self.began;
        if now - self.said < (time / 10).clamp(LEAST, MOST) || done >= total {
            return None;
        }
        self.said = now;
        let percent = u128::from(done) * 100 / u128::from(total);
        let rate = u128::from(done.saturating_sub(self.first)) * 1000 / time.as_millis().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        let left =
            (total - done).checked_div(rate).map(|left| format!(", {left} s left")).unwrap_or_default();
        Some(format!("{}: {percent} % of {}, {}/s{left}", self.what, Size(total), Size(rate)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_now_and_then_and_says_when_it_ends() {
        const MIB: u64 = 1 << 20;
        let start = Instant::now();
        let mut lines = Lines::new("warming", 1000 * MIB, start);
        let mut at = |second, done| lines.set(done * MIB, 1000 * MIB, start + Duration::from_secs(second));
        assert_eq!(at(1, 10), None);
        assert_eq!(at(5, 50).as_deref(), Some("warming: 5 % of 1000 MiB, 10 MiB/s, 95 s left"));
        assert_eq!(at(9, 90), None);
        assert_eq!(at(100, 200).as_deref(), Some("warming: 20 % of 1000 MiB, 2 MiB/s, 400 s left"));
        // Less often later: a tenth of the time, and once a minute.
        assert_eq!(at(108, 200), None);
        assert!(at(112, 200).is_some());
        assert!(at(10_000, 300).is_some());
        assert_eq!(at(10_059, 300), None);
        assert!(at(10_060, 300).is_some());
        // The end is the command's to say.
        assert_eq!(at(20_000, 1000), None);
    }

    #[test]
    fn what_was_done_before_is_no_rate() {
        let start = Instant::now();
        let mut lines = Lines::new("flattening", 0, start);
        lines.first = 500;
        let said = lines.set(500, 1000, start + Duration::from_secs(6)).unwrap();
        assert!(said.starts_with("flattening: 50 % of ") && !said.contains("left"), "{said}");
    }
}
