//! Walks an HPACK header block (RFC 7541) to find the values of `:authority` that are no legal authority.
//! Follows the dynamic table as far as that needs: the sizes of its entries and which of them are named `:authority`.

use std::{borrow::Cow, collections::VecDeque, ops::Range};

use http::uri::Authority;

use super::huffman;

/// The table size that a server allows which announces none, as hyper's do.
const TABLE_LIMIT: usize = 4096;
/// What each entry counts besides its name and value.
const ENTRY_OVERHEAD: usize = 32;
/// No string or table size of a legal block comes near it.
const LARGEST_INTEGER: usize = 1 << 24;
const AUTHORITY: &[u8] = b":authority";

/// Lengths of the names of the static table (RFC 7541 appendix A), from index 1.
const STATIC_NAMES: [usize; 61] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14,
    16, 13, 12, 6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10,
    25, 17, 10, 4, 3, 16,
];

/// The block does not follow RFC 7541.
#[derive(Debug)]
pub(super) struct Malformed;

/// Replace the string literal at `place` in the block by `value`.
#[derive(Debug)]
pub(super) struct Edit {
    pub(super) place: Range<usize>,
    pub(super) value: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Name {
    length: usize,
    is_authority: bool,
}

struct Slot {
    name: Name,
    size: usize,
}

/// The state of one connection's header compression, as far as it is followed.
pub(super) struct Walker {
    table: VecDeque<Slot>,
    size: usize,
    limit: usize,
}

impl Walker {
    pub(super) fn new() -> Self {
        Self {
            table: VecDeque::new(),
            size: 0,
            limit: TABLE_LIMIT,
        }
    }

    /// Walks one whole header block. Blocks must be given in the order of the connection.
    pub(super) fn walk(&mut self, block: &[u8]) -> Result<Vec<Edit>, Malformed> {
        let mut reader = Reader { block, at: 0 };
        let mut edits = Vec::new();
        while let Some(first) = reader.peek() {
            match first {
                0x80.. => {
                    let index = reader.integer(7)?;
                    self.name(index)?;
                }
                0x40..0x80 => self.literal(&mut reader, 6, &mut edits)?,
                0x20..0x40 => {
                    let limit = reader.integer(5)?;
                    if limit > TABLE_LIMIT {
                        return Err(Malformed);
                    }
                    self.limit = limit;
                    self.evict(0);
                }
                _ => self.literal(&mut reader, 4, &mut edits)?,
            }
        }
        Ok(edits)
    }

    /// A field whose value, and maybe name, is spelled out. Those with a prefix of six bits enter the table.
    fn literal(
        &mut self,
        reader: &mut Reader<'_>,
        prefix: u32,
        edits: &mut Vec<Edit>,
    ) -> Result<(), Malformed> {
        let enters_table = prefix == 6;
        let name = match reader.integer(prefix)? {
            0 => {
                let spelled = reader.string()?.decoded()?;
                Name {
                    length: spelled.len(),
                    is_authority: *spelled == *AUTHORITY,
                }
            }
            index => self.name(index)?,
        };
        let literal = reader.string()?;
        if !(enters_table || name.is_authority) {
            return Ok(());
        }
        let value = literal.decoded()?;
        if enters_table {
            self.insert(name, value.len());
        }
        if name.is_authority && !is_legal(&value) {
            edits.push(Edit {
                place: literal.place.clone(),
                value: made_legal(&value),
            });
        }
        Ok(())
    }

    fn name(&self, index: usize) -> Result<Name, Malformed> {
        let place = index.checked_sub(1).ok_or(Malformed)?;
        if let Some(length) = STATIC_NAMES.get(place) {
            return Ok(Name {
                length: *length,
                is_authority: place == 0,
            });
        }
        let slot = self
            .table
            .get(place - STATIC_NAMES.len())
            .ok_or(Malformed)?;
        Ok(slot.name)
    }

    fn insert(&mut self, name: Name, value_length: usize) {
        let size = name.length + value_length + ENTRY_OVERHEAD;
        self.evict(size);
        if size <= self.limit {
            self.size += size;
            self.table.push_front(Slot { name, size });
        }
    }

    /// Drops the oldest entries until one of `coming` bytes fits.
    fn evict(&mut self, coming: usize) {
        while self.size + coming > self.limit {
            let Some(oldest) = self.table.pop_back() else {
                return;
            };
            self.size -= oldest.size;
        }
    }
}

/// Legal is what the HTTP/2 server behind the filter accepts: the same parser decides.
fn is_legal(value: &[u8]) -> bool {
    Authority::try_from(value).is_ok()
}

/// As long as before, so that the server's table keeps in step with the client's.
fn made_legal(value: &[u8]) -> Vec<u8> {
    let legal = |byte: &u8| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            *byte
        } else {
            b'-'
        }
    };
    value.iter().map(legal).collect()
}

/// `value` as a string literal, not Huffman-coded.
pub(super) fn put_string(value: &[u8], out: &mut Vec<u8>) {
    const PREFIX: usize = 0x7f;
    let mut rest = value.len();
    if rest < PREFIX {
        out.push(low_bits(rest, 7));
    } else {
        out.push(low_bits(PREFIX, 7));
        rest -= PREFIX;
        while rest >= 0x80 {
            out.push(low_bits(rest, 7) | 0x80);
            rest >>= 7;
        }
        out.push(low_bits(rest, 7));
    }
    out.extend_from_slice(value);
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "masked to at most eight bits"
)]
fn low_bits(number: usize, bits: u32) -> u8 {
    (number & ((1 << bits) - 1)) as u8
}

struct Literal<'a> {
    /// With the length in front.
    place: Range<usize>,
    huffman: bool,
    bytes: &'a [u8],
}

impl<'a> Literal<'a> {
    fn decoded(&self) -> Result<Cow<'a, [u8]>, Malformed> {
        if self.huffman {
            huffman::decode(self.bytes).map(Cow::Owned).ok_or(Malformed)
        } else {
            Ok(Cow::Borrowed(self.bytes))
        }
    }
}

struct Reader<'a> {
    block: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.block.get(self.at).copied()
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let byte = self.peek().ok_or(Malformed)?;
        self.at += 1;
        Ok(byte)
    }

    /// RFC 7541 §5.1.
    fn integer(&mut self, prefix: u32) -> Result<usize, Malformed> {
        let full = (1 << prefix) - 1;
        let mut value = usize::from(self.byte()?) & full;
        if value < full {
            return Ok(value);
        }
        let mut shift = 0;
        loop {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if value > LARGEST_INTEGER || shift > 21 {
                return Err(Malformed);
            }
            if byte < 0x80 {
                return Ok(value);
            }
            shift += 7;
        }
    }

    /// RFC 7541 §5.2.
    fn string(&mut self) -> Result<Literal<'a>, Malformed> {
        let start = self.at;
        let huffman = self.peek().ok_or(Malformed)? & 0x80 != 0;
        let length = self.integer(7)?;
        let end = self.at + length;
        let bytes = self.block.get(self.at..end).ok_or(Malformed)?;
        self.at = end;
        Ok(Literal {
            place: start..end,
            huffman,
            bytes,
        })
    }
}
