//! What both binaries say and how they end.

mod bar;

use crate::error::{Error, Result};
use serde::Serialize;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use unicode_width::UnicodeWidthStr;

/// Turns the outcome of a command into an exit code; an error becomes one sentence on stderr.
pub(crate) fn exit(program: &str, outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(program, &error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

/// Says a sentence on stderr.
pub(crate) fn note(program: &str, text: &str) {
    #[cfg(test)]
    if listened::heard(|said| said.stderr.push_str(&format!("{program}: {text}\n"))) {
        return;
    }
    // Nothing is left to be done if stderr is closed.
    let _ = writeln!(std::io::stderr(), "{program}: {text}");
}

/// Prints `value` as the one JSON document of a command.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::failed(format!("cannot write JSON: {error}")))?;
    line(&text)
}

/// Prints one line for people.
pub(crate) fn line(text: &str) -> Result<()> {
    write_stdout(format!("{text}\n").as_bytes())
}

/// Writes to stdout. A reader that left (`| head`) ends the process quietly, as it would any other filter.
///
/// The standard library's stdout looks for line ends in everything; gibibytes of disk have no use for that.
pub(crate) fn write_stdout(mut bytes: &[u8]) -> Result<()> {
    #[cfg(test)]
    if listened::heard(|said| said.stdout.push_str(&String::from_utf8_lossy(bytes))) {
        return Ok(());
    }
    while !bytes.is_empty() {
        match rustix::io::write(rustix::stdio::stdout(), bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::PIPE) => std::process::exit(0),
            Err(errno) => return Err(Error::io("cannot write", "stdout", &errno.into())),
        }
    }
    Ok(())
}

/// A table for people: a header and rows, one line each, whatever is in them. Ten thousand rows take milliseconds.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<()> {
    let header = header.iter().map(|&cell| cell.to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(rows.into_iter().map(one_line)).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let start = text.len();
        for (width, cell) in widths.iter().zip(row) {
            text.push(' ');
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width - cell.width() + 1));
        }
        text.truncate(start + text[start..].trim_end().len());
        text.push('\n');
    }
    write_stdout(text.as_bytes())
}

/// The cells without what would move the cursor of a terminal: names are anybody's.
fn one_line(mut row: Vec<String>) -> Vec<String> {
    for cell in row.iter_mut().filter(|cell| cell.contains(char::is_control)) {
        *cell = cell.replace(char::is_control, "\u{fffd}");
    }
    row
}

/// Shows on stderr how much of `total` bytes of `what` is done: a bar on a terminal, else a line now and then.
pub(crate) fn progress(total: u64, what: &str) -> bar::Bar {
    bar::Bar::new(total, what)
}

/// Writes manual pages of `command` and its subcommands into `dir`.
pub(crate) fn manual(command: clap::Command, dir: &Path) -> Result<()> {
    clap_mangen::generate_to(command, dir)
        .map_err(|error| Error::io("cannot write manual pages", dir.display(), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_widest_in_them_and_a_row_is_a_line() {
        let rows = [["a", "1"], ["größer", "22"], ["表", ""], ["two\nlines\u{1b}[2J", "3"]];
        let rows = rows.map(|row| row.map(String::from).to_vec());
        let (outcome, said) = listened::to(|| table(&["name", "number"], rows));
        outcome.unwrap();
        let lines: Vec<_> = said.stdout.lines().collect();
        assert_eq!(lines[0], " name           number");
        assert_eq!(lines[1], " a              1");
        assert_eq!(lines[2], " größer         22");
        assert_eq!(lines[3], " 表");
        assert_eq!(lines[4], " two\u{fffd}lines\u{fffd}[2J  3");
        assert_eq!(lines.len(), 5);
    }
}

/// What a command says, for tests that run it in their own process.
#[cfg(test)]
pub(crate) mod listened {
    use std::cell::RefCell;

    #[derive(Debug, Default)]
    pub(crate) struct Said {
        pub(crate) stdout: String,
        pub(crate) stderr: String,
    }

    thread_local! {
        static SAID: RefCell<Option<Said>> = const { RefCell::new(None) };
    }

    /// Runs `run` and listens to what it says on this thread.
    pub(crate) fn to<T>(run: impl FnOnce() -> T) -> (T, Said) {
        SAID.set(Some(Said::default()));
        let outcome = run();
        (outcome, SAID.take().unwrap_or_default())
    }

    /// Whether somebody listens.
    pub(super) fn heard(say: impl FnOnce(&mut Said)) -> bool {
        SAID.with_borrow_mut(|said| said.as_mut().map(say).is_some())
    }
}
