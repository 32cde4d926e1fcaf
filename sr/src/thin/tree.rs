//! B-trees of the metadata (Linux, persistent-data/dm-btree-internal.h).
//!
//! ```text
//! 0x00  4  checksum        0x10  4  entries             0x20  8 × capacity            keys, ascending
//! 0x04  4  1 inner, 2 leaf 0x14  4  capacity            behind  value length × capacity  values
//! 0x08  8  block number    0x18  4  length of a value
//! ```
//!
//! An inner node's values are the blocks of its children, each with the keys from its own key to the next one's. Trees
//! are changed by copying the nodes on the way, so two trees that were one share every node that neither has changed.

use super::block::{Block, Blocks, LEN};
use crate::error::Result;
use std::collections::HashSet;
use std::ops::RangeInclusive;

const NODE_SALT: u32 = 121_107;
const HEADER: usize = 32;
const INNER: u32 = 1;
const LEAF: u32 = 2;

/// Trees are not higher: 17 levels of the smallest fan-out there is hold more than 2^64 keys.
const HEIGHT_MAX: usize = 17;

/// Longest value, in numbers of 8 bytes.
const VALUE_MAX: usize = 3;

/// A tree whose values have `value_len` bytes, a multiple of 8 and at most 24. They are shown as numbers.
pub(super) struct Tree<'a> {
    pub(super) blocks: &'a Blocks,
    pub(super) root: u64,
    pub(super) value_len: usize,
}

struct Node {
    block: Box<Block>,
    leaf: bool,
    entries: usize,
    capacity: usize,
    value_len: usize,
}

impl Node {
    fn key(&self, index: usize) -> u64 {
        self.block.long(HEADER + index * 8)
    }

    fn value(&self, index: usize) -> [u64; VALUE_MAX] {
        let at = HEADER + self.capacity * 8 + index * self.value_len;
        let mut value = [0; VALUE_MAX];
        for (number, word) in value.iter_mut().take(self.value_len / 8).enumerate() {
            *word = self.block.long(at + number * 8);
        }
        value
    }

    /// The last entry whose key is at most `key`.
    fn below(&self, key: u64) -> Option<usize> {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle) <= key { low = middle + 1 } else { high = middle }
        }
        low.checked_sub(1)
    }
}

impl<'a> Tree<'a> {
    fn node(&self, number: u64) -> Result<Node> {
        let block = self.blocks.checked(number, NODE_SALT)?;
        let damaged = |how| Err(self.blocks.damaged(number, how));
        let leaf = match block.word(4) & (INNER | LEAF) {
            INNER => false,
            LEAF => true,
            _ => return damaged("is neither an inner node nor a leaf"),
        };
        let (entries, capacity) = (block.word(16) as usize, block.word(20) as usize);
        let value_len = block.word(24) as usize;
        if value_len != if leaf { self.value_len } else { 8 } {
            return damaged("has values of another length than it should");
        }
        if entries > capacity || capacity > (LEN - HEADER) / (8 + value_len) {
            return damaged("has more entries than fit");
        }
        if !leaf && entries == 0 {
            return damaged("is an inner node without children");
        }
        let node = Node { block, leaf, entries, capacity, value_len };
        if (1..entries).any(|index| node.key(index - 1) >= node.key(index)) {
            return damaged("has keys out of order");
        }
        Ok(node)
    }

    /// The value of `key`.
    pub(super) fn get(&self, key: u64) -> Result<Option<[u64; VALUE_MAX]>> {
        let mut number = self.root;
        for _ in 0..HEIGHT_MAX {
            let node = self.node(number)?;
            let Some(index) = node.below(key) else { return Ok(None) };
            if node.leaf {
                return Ok((node.key(index) == key).then(|| node.value(index)));
            }
            number = node.value(index)[0];
        }
        Err(self.too_high())
    }

    fn too_high(&self) -> crate::error::Error {
        self.blocks.damaged(self.root, "is the root of a tree that does not end")
    }

    /// Calls `each` with every key and value, by key.
    pub(super) fn walk(&self, each: &mut dyn FnMut(u64, &[u64]) -> Result<()>) -> Result<()> {
        self.walk_from(self.root, 0..=u64::MAX, HEIGHT_MAX, each)
    }

    /// Walks the node at `number`, whose keys lie in `keys`. That every child's do is also what ends a walk: a node can
    /// not be its own descendant.
    fn walk_from(
        &self,
        number: u64,
        keys: RangeInclusive<u64>,
        height: usize,
        each: &mut dyn FnMut(u64, &[u64]) -> Result<()>,
    ) -> Result<()> {
        let node = self.node(number)?;
        let bounds = [0, node.entries.saturating_sub(1)];
        if node.entries > 0 && bounds.iter().any(|&index| !keys.contains(&node.key(index))) {
            return Err(self.blocks.damaged(number, "has keys that are not its parent's"));
        }
        for index in 0..node.entries {
            if node.leaf {
                each(node.key(index), &node.value(index))?;
                continue;
            }
            let Some(height) = height.checked_sub(1) else { return Err(self.too_high()) };
            let last = match index + 1 {
                next if next < node.entries => node.key(next) - 1,
                _ => *keys.end(),
            };
            self.walk_from(node.value(index)[0], node.key(index)..=last, height, each)?;
        }
        Ok(())
    }

    /// Calls `each` with every key that one tree has and the other has not, or for which `same` is false; by key.
    /// Nodes that are in both are not read.
    pub(super) fn differences(
        a: &Tree<'a>,
        b: &Tree<'a>,
        same: &dyn Fn(&[u64], &[u64]) -> bool,
        each: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let (mut a, mut b) = (Level::top(a)?, Level::top(b)?);
        loop {
            if a.height == b.height {
                drop_common(&mut a.nodes, &mut b.nodes);
                if a.height == 0 {
                    break;
                }
            }
            // Levels are compared with levels of the same height, of which leaves are the lowest.
            match a.height.cmp(&b.height) {
                std::cmp::Ordering::Less => b.descend()?,
                std::cmp::Ordering::Greater => a.descend()?,
                std::cmp::Ordering::Equal => {
                    a.descend()?;
                    b.descend()?;
                }
            }
        }
        let (mut a, mut b) = (a.entries(), b.entries());
        let (mut left, mut right) = (a.next()?, b.next()?);
        while let Some(key) = [&left, &right].into_iter().flatten().map(|(key, _)| *key).min() {
            let (in_a, in_b) = (left.filter(|(it, _)| *it == key), right.filter(|(it, _)| *it == key));
            if !matches!((in_a, in_b), (Some((_, a)), Some((_, b))) if same(&a, &b)) {
                each(key)?;
            }
            if in_a.is_some() {
                left = a.next()?;
            }
            if in_b.is_some() {
                right = b.next()?;
            }
        }
        Ok(())
    }
}

/// Nodes of one height of a tree, by key; leaves have height 0.
struct Level<'t, 'a> {
    tree: &'t Tree<'a>,
    nodes: Vec<u64>,
    height: usize,
}

impl<'t, 'a> Level<'t, 'a> {
    fn top(tree: &'t Tree<'a>) -> Result<Self> {
        let mut node = tree.node(tree.root)?;
        let mut height = 0;
        while !node.leaf {
            height += 1;
            if height > HEIGHT_MAX {
                return Err(tree.too_high());
            }
            node = tree.node(node.value(0)[0])?;
        }
        Ok(Self { tree, nodes: vec![tree.root], height })
    }

    /// Goes from the nodes to their children.
    fn descend(&mut self) -> Result<()> {
        let mut children = Vec::new();
        for &number in &self.nodes {
            let node = self.tree.node(number)?;
            if node.leaf {
                return Err(self.tree.blocks.damaged(number, "is a leaf above others"));
            }
            children.extend((0..node.entries).map(|index| node.value(index)[0]));
        }
        self.nodes = children;
        self.height -= 1;
        Ok(())
    }

    /// What is in these nodes, which are leaves.
    fn entries(self) -> Entries<'t, 'a> {
        Entries { tree: self.tree, nodes: self.nodes.into_iter(), node: None, index: 0, last: None }
    }
}

struct Entries<'t, 'a> {
    tree: &'t Tree<'a>,
    nodes: std::vec::IntoIter<u64>,
    node: Option<Node>,
    index: usize,
    last: Option<u64>,
}

impl Entries<'_, '_> {
    fn next(&mut self) -> Result<Option<(u64, [u64; VALUE_MAX])>> {
        loop {
            if let Some(node) = &self.node
                && self.index < node.entries
            {
                let key = node.key(self.index);
                if self.last.is_some_and(|last| last >= key) {
                    return Err(self
                        .tree
                        .blocks
                        .damaged(self.tree.root, "is the root of a tree out of order"));
                }
                let value = node.value(self.index);
                self.index += 1;
                self.last = Some(key);
                return Ok(Some((key, value)));
            }
            let Some(number) = self.nodes.next() else { return Ok(None) };
            let node = self.tree.node(number)?;
            if !node.leaf {
                return Err(self.tree.blocks.damaged(number, "is no leaf where others are"));
            }
            (self.node, self.index) = (Some(node), 0);
        }
    }
}

/// Takes out of both what is in both.
fn drop_common(a: &mut Vec<u64>, b: &mut Vec<u64>) {
    let in_b: HashSet<u64> = b.iter().copied().collect();
    let common: HashSet<u64> = a.iter().copied().filter(|number| in_b.contains(number)).collect();
    a.retain(|number| !common.contains(number));
    b.retain(|number| !common.contains(number));
}
