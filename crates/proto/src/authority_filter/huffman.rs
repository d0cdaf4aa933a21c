//! The Huffman code of HPACK (RFC 7541 appendix B), decoding only. The code is canonical, so the length of each
//! symbol's code is all that has to be written down.

/// The length in bits of each byte's code. The end-of-string symbol, 30 ones, may not appear in a string.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

const LONGEST: usize = 30;

/// All codes of one length: consecutive numbers from `first`, standing for the symbols from `offset` on.
#[derive(Clone, Copy)]
struct Row {
    first: u32,
    count: u32,
    offset: usize,
}

struct Code {
    rows: [Row; LONGEST + 1],
    symbols: [u8; 256],
}

static CODE: Code = canonical();

#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "runs at compile time, where a wrong index is a build error"
)]
const fn canonical() -> Code {
    let mut rows = [Row {
        first: 0,
        count: 0,
        offset: 0,
    }; LONGEST + 1];
    let mut symbols = [0; 256];
    let (mut next, mut placed, mut length) = (0_u32, 0_usize, 1_usize);
    while length <= LONGEST {
        next <<= 1;
        rows[length] = Row {
            first: next,
            count: 0,
            offset: placed,
        };
        let mut symbol = 0;
        while symbol < 256 {
            if LENGTHS[symbol] as usize == length {
                symbols[placed] = symbol as u8;
                placed += 1;
                next += 1;
                rows[length].count += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    Code { rows, symbols }
}

/// The bytes that `coded` stands for; `None` when it is no valid string.
pub(super) fn decode(coded: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(coded.len() * 8 / 5);
    let (mut code, mut length) = (0_u32, 0_usize);
    for byte in coded {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(byte >> shift & 1);
            length += 1;
            let row = CODE.rows.get(length)?;
            let place = code.wrapping_sub(row.first);
            if place < row.count {
                decoded.push(*CODE.symbols.get(row.offset + place as usize)?);
                (code, length) = (0, 0);
            }
        }
    }
    // What is left must be padding: less than a byte of the first bits of the end-of-string symbol, all ones.
    (length < 8 && code == (1 << length) - 1).then_some(decoded)
}

/// Test helper: the coded form of `plain`.
#[cfg(test)]
pub(super) fn encode(plain: &[u8]) -> Vec<u8> {
    let mut bits = Vec::new();
    for symbol in plain {
        let length = usize::from(LENGTHS[usize::from(*symbol)]);
        let row = CODE.rows[length];
        let place = CODE.symbols[row.offset..]
            .iter()
            .position(|other| other == symbol)
            .unwrap();
        let code = row.first + u32::try_from(place).unwrap();
        bits.extend((0..length).rev().map(|shift| code >> shift & 1));
    }
    bits.resize(bits.len().next_multiple_of(8), 1);
    bits.chunks(8)
        .map(|byte| {
            byte.iter()
                .fold(0_u8, |all, bit| all << 1 | u8::from(*bit == 1))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{decode, encode};

    // RFC 7541 appendix C.4.
    #[test]
    fn decodes_the_examples_of_the_rfc() {
        let example = [
            0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
        ];
        assert_eq!(decode(&example).unwrap(), b"www.example.com");
        assert_eq!(encode(b"www.example.com"), example);
        assert_eq!(
            decode(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]).unwrap(),
            b"no-cache"
        );
    }

    #[test]
    fn decodes_every_byte() {
        let every: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&every)).unwrap(), every);
    }

    #[test]
    fn refuses_the_end_symbol_long_padding_and_padding_of_zeros() {
        assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(decode(&[0x07, 0xff]), None);
        assert_eq!(decode(&[0b0001_1000]), None);
    }
}
