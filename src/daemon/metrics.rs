//! What a server counts, as Prometheus reads it (text exposition format 0.0.4).

use super::{Attachments, Registry};
use crate::export::ImageExport;
use backends::cache::Store;
use std::fmt::Write;
use std::sync::atomic::Ordering;

/// The content type of the text.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// One figure of every export: its name, kind and meaning, and where it is.
type Figure = (&'static str, &'static str, &'static str, fn(&ImageExport) -> u64);

const FIGURES: [Figure; 6] = [
    ("thinorigin_reads_total", "counter", "Reads asked for.", |export| {
        export.counts().reads.load(Ordering::Relaxed)
    }),
    ("thinorigin_read_bytes_total", "counter", "Bytes that reads asked for.", |export| {
        export.counts().bytes.load(Ordering::Relaxed)
    }),
    ("thinorigin_waited_reads_total", "counter", "Reads that nothing local answered.", |export| {
        export.counts().waited.load(Ordering::Relaxed)
    }),
    ("thinorigin_read_errors_total", "counter", "Reads that were answered with an error.", |export| {
        export.counts().errors.load(Ordering::Relaxed)
    }),
    ("thinorigin_waiting_reads", "gauge", "Reads that wait at this moment.", |export| {
        export.waiting().map_or(0, |waiting| waiting.reads)
    }),
    ("thinorigin_oldest_wait_seconds", "gauge", "For how long the oldest of them waits.", |export| {
        export.waiting().map_or(0, |waiting| waiting.seconds)
    }),
];

/// All figures, as they are now.
pub(super) fn text(registry: &Registry, attachments: &Attachments, store: Option<&Store>) -> String {
    let mut exports: Vec<(String, _)> = Vec::new();
    for export in registry.open_exports() {
        exports.push((format!("export=\"{}\"", escaped(export.name())), export));
    }
    for (device, export) in attachments.exports() {
        exports.push((format!("device=\"{}\"", escaped(&device)), export));
    }
    let mut text = String::new();
    for (name, kind, meaning, figure) in FIGURES {
        head(&mut text, name, kind, meaning);
        for (label, export) in &exports {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name}{{{label}}} {}", figure(export));
        }
    }
    if let Some(store) = store {
        for (name, meaning, figure) in [
            ("thinorigin_cache_bytes", "Disk space that the cache takes.", store.used()),
            ("thinorigin_cache_limit_bytes", "How much it may take.", store.limit()),
        ] {
            head(&mut text, name, "gauge", meaning);
            let _ = writeln!(text, "{name} {figure}");
        }
    }
    text
}

fn head(text: &mut String, name: &str, kind: &str, meaning: &str) {
    let _ = writeln!(text, "# HELP {name} {meaning}\n# TYPE {name} {kind}");
}

/// A label's value: backslash, quote and line end are escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
