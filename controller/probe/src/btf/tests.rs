use super::*;
use proptest::prelude::*;

/// Builds BTF for the tests. Type ids count from 1.
#[derive(Default)]
struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
}

impl Builder {
    fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0] }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(name.as_bytes());
        self.strings.push(0);
        at
    }

    fn ty(&mut self, name: &str, kind: u32, vlen: u32, flag: bool, size_or_type: u32, extra: &[u32]) {
        let name = self.name(name);
        let info = kind << 24 | vlen | u32::from(flag) << 31;
        for word in [name, info, size_or_type].iter().chain(extra) {
            self.types.extend(word.to_ne_bytes());
        }
    }

    fn structure(&mut self, kind: u32, name: &str, flag: bool, size: u32, members: &[(&str, u32, u32)]) {
        let extra: Vec<u32> = members.iter().flat_map(|(name, ty, bits)| [self.name(name), *ty, *bits]).collect();
        self.ty(name, kind, members.len() as u32, flag, size, &extra);
    }

    fn finish(self) -> Vec<u8> {
        let lengths = [0, self.types.len() as u32, self.types.len() as u32, self.strings.len() as u32];
        let mut data = vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
        data.extend(lengths.iter().flat_map(|word| word.to_ne_bytes()));
        data.extend(self.types);
        data.extend(self.strings);
        data
    }
}

fn example() -> Vec<u8> {
    let mut b = Builder::new();
    b.ty("long", kind::INT, 0, false, 8, &[64]); // 1
    b.structure(kind::STRUCT, "counter", false, 40, &[("lock", 1, 0), ("count", 1, 64)]); // 2
    b.ty("", kind::ARRAY, 0, false, 0, &[2, 1, 4]); // 3: counter[4]
    b.structure(kind::UNION, "", false, 8, &[("a", 1, 0), ("b", 1, 0)]); // 4
    b.ty("counters", kind::TYPEDEF, 0, false, 3, &[]); // 5
    b.ty("", kind::CONST, 0, false, 5, &[]); // 6
    // With bit fields the upper 8 bits are the width.
    b.structure(kind::STRUCT, "outer", true, 200, &[("first", 1, 0), ("", 4, 64), ("flag", 1, 1 << 24 | 130), ("stat", 6, 192)]); // 7
    b.ty("", kind::ARRAY, 0, false, 0, &[3, 1, 2]); // 8: counter[2][4]
    b.structure(kind::STRUCT, "matrix", false, 320, &[("rows", 8, 0)]); // 9
    b.finish()
}

#[test]
fn follows_members_arrays_typedefs_and_anonymous_unions() {
    let data = example();
    let btf = Btf::parse(&data, &["outer", "matrix"]).unwrap();
    assert_eq!(btf.offset("outer", "first"), Ok(0));
    assert_eq!(btf.offset("outer", "b"), Ok(8));
    assert_eq!(btf.offset("outer", "flag"), Ok(16));
    assert_eq!(btf.offset("outer", "stat.count"), Ok(24 + 8));
    assert_eq!(btf.stride("outer", "stat"), Ok(40));
    assert_eq!(btf.stride("matrix", "rows"), Ok(160));
}

#[test]
fn says_what_is_missing() {
    let data = example();
    let btf = Btf::parse(&data, &["outer", "absent"]).unwrap();
    assert_eq!(btf.offset("absent", "x"), Err(BtfError::NoStruct("absent".into())));
    // It exists, but was not asked for.
    assert_eq!(btf.offset("counter", "lock"), Err(BtfError::NoStruct("counter".into())));
    assert_eq!(btf.offset("outer", "stat.nope").unwrap_err().to_string(), "the kernel's struct outer has no member stat.nope");
    assert!(btf.stride("outer", "first").unwrap_err().to_string().contains("first[]"));
}

#[test]
fn an_endless_typedef_ends() {
    let mut b = Builder::new();
    b.ty("loop", kind::TYPEDEF, 0, false, 1, &[]);
    b.structure(kind::STRUCT, "s", false, 8, &[("", 1, 0)]);
    let data = b.finish();
    let btf = Btf::parse(&data, &["s"]).unwrap();
    assert!(matches!(btf.offset("s", "x"), Err(BtfError::Malformed { what: "endless typedef", .. })));
}

#[test]
fn a_struct_inside_itself_ends() {
    let mut b = Builder::new();
    b.structure(kind::STRUCT, "s", false, 8, &[("", 1, 0), ("", 1, 0)]);
    let data = b.finish();
    let btf = Btf::parse(&data, &["s"]).unwrap();
    assert!(matches!(btf.offset("s", "x"), Err(BtfError::Malformed { what: "nested too deeply", .. })));
}

proptest! {
    #[test]
    fn damaged_data_is_an_error_not_a_panic(at in 0..800usize, value in any::<u8>(), cut in 0..800usize) {
        let mut data = example();
        if let Some(byte) = data.get_mut(at) {
            *byte = value;
        }
        data.truncate(data.len().min(cut.max(1)));
        if let Ok(btf) = Btf::parse(&data, &["outer", "matrix"]) {
            let _ = btf.offset("outer", "stat.count");
            let _ = btf.stride("matrix", "rows");
        }
    }
}
