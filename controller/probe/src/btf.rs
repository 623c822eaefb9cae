//! Finds kernel fields in the kernel's own type information (BTF, `/sys/kernel/btf/vmlinux`).
//!
//! Only what is asked for is looked at: one pass notes where each type begins and which id the wanted structs have,
//! then members are followed by their dotted path, through anonymous structs and unions and into array elements.
//! The 6 MB are borrowed and can be given back when the offsets are known.

use std::collections::HashMap;
use thiserror::Error;

/// Why a value was not found.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    /// The data is not BTF as this program knows it.
    #[error("the kernel's type information is malformed at byte {at}: {what}")]
    Malformed {
        /// Offset in the data, in bytes.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// The kernel has no such struct.
    #[error("the kernel has no struct {0}")]
    NoStruct(String),
    /// The struct has no such member.
    #[error("the kernel's struct {structure} has no member {path}")]
    NoMember {
        /// Name of the struct.
        structure: String,
        /// Dotted path that was looked for.
        path: String,
    },
}

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: usize = 24;
/// Longest chain of typedefs and qualifiers, and deepest nesting of anonymous structs, that is followed.
const MAX_DEPTH: u32 = 32;

mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// The kernel's types, with an index.
pub struct Btf<'a> {
    data: &'a [u8],
    strings: usize,
    /// Where each type begins; id 0 is `void`.
    types: Vec<u32>,
    structs: HashMap<&'a str, u32>,
}

/// The fixed part of a type.
#[derive(Clone, Copy)]
struct Type {
    at: usize,
    kind: u32,
    members: u32,
    has_bitfields: bool,
    /// Size in bytes, or the id of the type referred to.
    size_or_type: u32,
}

impl<'a> Btf<'a> {
    /// Indexes `data` and notes the ids of the structs called `wanted`.
    pub fn parse(data: &'a [u8], wanted: &[&str]) -> Result<Self, BtfError> {
        let word = |at: usize| word(data, at);
        if word(0)? & 0xffff != u32::from(MAGIC) {
            return Err(BtfError::Malformed { at: 0, what: "wrong magic number" });
        }
        let body = word(4)? as usize;
        if body < HEADER_BYTES {
            return Err(BtfError::Malformed { at: 4, what: "header too short" });
        }
        let begin = body + word(8)? as usize;
        let end = begin + word(12)? as usize;
        let strings = body + word(16)? as usize;
        let mut btf = Self { data, strings, types: vec![u32::MAX], structs: HashMap::new() };
        let mut at = begin;
        while at < end {
            let ty = btf.type_at(at)?;
            if ty.kind == kind::STRUCT && ty.members > 0 {
                let name = btf.string(word(at)? as usize)?;
                if wanted.contains(&name) {
                    btf.structs.entry(name).or_insert(btf.types.len() as u32);
                }
            }
            btf.types.push(u32::try_from(at).map_err(|_| BtfError::Malformed { at, what: "too large" })?);
            at += 12 + extra_bytes(ty, at)?;
        }
        Ok(btf)
    }

    /// Offset of the member at the dotted `path` in `structure`, in bytes.
    pub fn offset(&self, structure: &str, path: &str) -> Result<u32, BtfError> {
        Ok(self.follow(structure, path)?.0)
    }

    /// The member at `path` is an array: the size of one element, in bytes.
    pub fn stride(&self, structure: &str, path: &str) -> Result<u32, BtfError> {
        let missing = || BtfError::NoMember { structure: structure.to_owned(), path: format!("{path}[]") };
        let ty = self.resolve(self.follow(structure, path)?.1)?;
        if ty.kind != kind::ARRAY {
            return Err(missing());
        }
        self.size(word(self.data, ty.at + 12)?, 0)
    }

    fn follow(&self, structure: &str, path: &str) -> Result<(u32, u32), BtfError> {
        let mut id = *self.structs.get(structure).ok_or_else(|| BtfError::NoStruct(structure.to_owned()))?;
        let mut offset = 0;
        for name in path.split('.') {
            let (bits, member) =
                self.member(id, name, 0)?.ok_or_else(|| BtfError::NoMember { structure: structure.to_owned(), path: path.to_owned() })?;
            offset += bits / 8;
            id = member;
        }
        Ok((offset, id))
    }

    /// Offset in bits and type of the member `name` of the struct, union or array of such with this id.
    fn member(&self, id: u32, name: &str, depth: u32) -> Result<Option<(u32, u32)>, BtfError> {
        let ty = self.resolve(id)?;
        if depth > MAX_DEPTH {
            return Err(BtfError::Malformed { at: ty.at, what: "nested too deeply" });
        }
        if ty.kind == kind::ARRAY {
            return self.member(word(self.data, ty.at + 12)?, name, depth + 1);
        }
        if ty.kind != kind::STRUCT && ty.kind != kind::UNION {
            return Ok(None);
        }
        for index in 0..ty.members as usize {
            let at = ty.at + 12 + 12 * index;
            let (member_name, member_type) = (self.string(word(self.data, at)? as usize)?, word(self.data, at + 4)?);
            let raw = word(self.data, at + 8)?;
            let bits = if ty.has_bitfields { raw & 0x00ff_ffff } else { raw };
            if member_name == name {
                return Ok(Some((bits, member_type)));
            }
            if member_name.is_empty()
                && let Some((inner, found)) = self.member(member_type, name, depth + 1)?
            {
                return Ok(Some((bits + inner, found)));
            }
        }
        Ok(None)
    }

    fn size(&self, id: u32, depth: u32) -> Result<u32, BtfError> {
        let ty = self.resolve(id)?;
        match ty.kind {
            kind::PTR => Ok(8),
            kind::ARRAY if depth < MAX_DEPTH => {
                let element = self.size(word(self.data, ty.at + 12)?, depth + 1)?;
                Ok(element.saturating_mul(word(self.data, ty.at + 20)?))
            }
            kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::FLOAT => Ok(ty.size_or_type),
            _ => Err(BtfError::Malformed { at: ty.at, what: "array of a type without size" }),
        }
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, id: u32) -> Result<Type, BtfError> {
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            let at = self.types.get(id as usize).copied().unwrap_or(u32::MAX) as usize;
            let ty = self.type_at(at)?;
            match ty.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => id = ty.size_or_type,
                _ => return Ok(ty),
            }
        }
        Err(BtfError::Malformed { at: 0, what: "endless typedef" })
    }

    fn type_at(&self, at: usize) -> Result<Type, BtfError> {
        let info = word(self.data, at.saturating_add(4))?;
        Ok(Type {
            at,
            kind: info >> 24 & 0x1f,
            members: info & 0xffff,
            has_bitfields: info >> 31 == 1,
            size_or_type: word(self.data, at.saturating_add(8))?,
        })
    }

    fn string(&self, offset: usize) -> Result<&'a str, BtfError> {
        let at = self.strings + offset;
        let bytes = self.data.get(at..).ok_or(BtfError::Malformed { at, what: "name beyond the end" })?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        std::str::from_utf8(&bytes[..end]).map_err(|_| BtfError::Malformed { at, what: "name is not text" })
    }
}

/// Bytes that follow the fixed part of a type.
fn extra_bytes(ty: Type, at: usize) -> Result<usize, BtfError> {
    let members = ty.members as usize;
    Ok(match ty.kind {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * members,
        kind::ENUM | kind::FUNC_PROTO => 8 * members,
        // Pointer, forward, typedef, qualifiers, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return Err(BtfError::Malformed { at, what: "unknown kind of type" }),
    })
}

fn word(data: &[u8], at: usize) -> Result<u32, BtfError> {
    let bytes = at.checked_add(4).and_then(|end| data.get(at..end)).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_ne_bytes).ok_or(BtfError::Malformed { at, what: "unexpected end" })
}

#[cfg(test)]
mod tests;
