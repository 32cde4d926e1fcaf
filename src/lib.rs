//! Thinorigin: VM disks that are instant thin clones of templates which live somewhere else.
//!
//! This crate joins the four members and is the only place that knows them all: [`image`] reads formats over
//! sources, [`export`] serves images by NBD, [`daemon`] makes them kernel devices, and the two command lines stand on
//! top: [`cli`] for `thinorigin`, [`smctl`] for `smctl`.

pub mod cli;
pub mod daemon;
pub mod error;
pub mod export;
pub mod image;
mod memo;
mod memory;
mod output;
mod prefetch;
mod privileges;
mod progress;
pub mod size;
pub mod smctl;
mod telemetry;
mod trace;
