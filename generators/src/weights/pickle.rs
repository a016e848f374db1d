//! The part of Python's pickle language that a state dict is written in.
//!
//! Nothing is ever called: the few globals that a state dict needs stand for themselves, and every other one is
//! refused by name, as is every instruction that a state dict does not need.

/// What is wrong with a pickle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// It ends in the middle of an instruction, or before its end.
    #[error("The pickle is cut short at byte {at}")]
    Short {
        /// Where.
        at: usize,
    },
    /// An instruction that a state dict does not need.
    #[error("The pickle has the instruction 0x{opcode:02x} at byte {at}, which is not read")]
    Opcode {
        /// The instruction.
        opcode: u8,
        /// Where.
        at: usize,
    },
    /// A function or class that a state dict does not need.
    #[error("The pickle refers to {name}, which is not part of a state dict")]
    Global {
        /// Its full name.
        name: String,
    },
    /// An instruction finds something else than it works on.
    #[error("The pickle does not make sense at byte {at}")]
    Senseless {
        /// Where.
        at: usize,
    },
    /// More values than any state dict has.
    #[error("The pickle is nested or repeated beyond any state dict, at byte {at}")]
    TooLarge {
        /// Where.
        at: usize,
    },
}

/// A value that a pickle makes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// Something that tensors do not depend on.
    Other,
    Int(i64),
    Text(String),
    Tuple(Vec<Value>),
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    Global(&'static str),
    /// A persistent id: what torch calls its storages by.
    Persistent(Box<Value>),
    /// A rebuilt tensor: its arguments.
    Tensor(Vec<Value>),
}

const GLOBALS: [&str; 14] = [
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.FloatStorage",
    "torch.DoubleStorage",
    "torch.HalfStorage",
    "torch.BFloat16Storage",
    "torch.LongStorage",
    "torch.IntStorage",
    "torch.ShortStorage",
    "torch.CharStorage",
    "torch.ByteStorage",
    "torch.BoolStorage",
    "torch.Size",
];

/// Values that may be alive at once, copies included: far more than any state dict has.
const MOST: usize = 1 << 20;

/// How deeply values may be nested: so little that no walk through them exhausts the stack.
const DEEPEST: usize = 32;

/// Reads a pickle to its end.
pub(crate) fn read(bytes: &[u8]) -> Result<Value, PickleError> {
    let mut machine = Machine { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: Vec::new(), copied: 0 };
    loop {
        let opcode = machine.byte()?;
        if opcode == b'.' {
            return machine.pop();
        }
        machine.step(opcode)?;
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: Vec<(u32, Value)>,
    copied: usize,
}

impl Machine<'_> {
    fn step(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            0x80 => self.take(1).map(drop),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'N' | 0x88 | 0x89 => self.push(Value::Other),
            b'K' | b'M' | b'J' | 0x8a => self.integer(opcode),
            b'G' => {
                self.take(8)?;
                self.push(Value::Other)
            }
            b'X' | 0x8c => self.text(opcode),
            b'}' => self.push(Value::Dict(Vec::new())),
            b']' => self.push(Value::List(Vec::new())),
            b')' | 0x85..=0x87 | b't' => self.tuple(opcode),
            b's' | b'u' => self.set_items(opcode),
            b'a' | b'e' => self.append(opcode),
            b'q' | b'r' | 0x94 => self.remember(opcode),
            b'h' | b'j' => self.recall(opcode),
            b'c' | 0x93 => self.global(opcode),
            b'Q' => {
                let id = self.pop()?;
                self.nest(std::slice::from_ref(&id))?;
                self.push(Value::Persistent(Box::new(id)))
            }
            b'R' => self.reduce(),
            // What a state dict is built with are its modules' versions.
            b'b' => self.pop().map(drop),
            _ => Err(PickleError::Opcode { opcode, at: self.at - 1 }),
        }
    }

    fn take(&mut self, length: usize) -> Result<&[u8], PickleError> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or(PickleError::Short { at: self.bytes.len() })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// A little-endian number of up to eight bytes, without a sign.
    fn number(&mut self, width: usize) -> Result<u64, PickleError> {
        let bytes = self.take(width)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn senseless(&self) -> PickleError {
        PickleError::Senseless { at: self.at }
    }

    /// Refuses values that are too deep to be put into another.
    fn nest(&self, values: &[Value]) -> Result<(), PickleError> {
        let shallow = values.iter().all(|value| is_shallow(value, DEEPEST));
        if shallow { Ok(()) } else { Err(PickleError::TooLarge { at: self.at }) }
    }

    fn push(&mut self, value: Value) -> Result<(), PickleError> {
        if self.stack.len() + self.copied > MOST {
            return Err(PickleError::TooLarge { at: self.at });
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, PickleError> {
        // Values below the last mark belong to what the mark opened.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor { Err(self.senseless()) } else { self.stack.pop().ok_or(self.senseless()) }
    }

    fn since_mark(&mut self) -> Result<Vec<Value>, PickleError> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len()).ok_or(self.senseless())?;
        Ok(self.stack.split_off(mark))
    }

    fn integer(&mut self, opcode: u8) -> Result<(), PickleError> {
        let number = match opcode {
            b'K' => self.number(1)? as i64,
            b'M' => self.number(2)? as i64,
            b'J' => i64::from(self.number(4)? as u32 as i32),
            _ => self.long()?,
        };
        self.push(Value::Int(number))
    }

    fn long(&mut self) -> Result<i64, PickleError> {
        let width = usize::from(self.byte()?);
        match width {
            0 => Ok(0),
            1..=8 => {
                let unused = 64 - 8 * width as u32;
                Ok((self.number(width)? << unused) as i64 >> unused)
            }
            _ => Err(self.senseless()),
        }
    }

    fn text(&mut self, opcode: u8) -> Result<(), PickleError> {
        let length = self.number(if opcode == b'X' { 4 } else { 1 })? as usize;
        let at = self.at;
        let text = str::from_utf8(self.take(length)?).map_err(|_| PickleError::Senseless { at })?.to_owned();
        self.push(Value::Text(text))
    }

    fn tuple(&mut self, opcode: u8) -> Result<(), PickleError> {
        let values = match opcode {
            b')' => Vec::new(),
            b't' => self.since_mark()?,
            _ => {
                let count = usize::from(opcode - 0x84);
                let mut values = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                values.reverse();
                values
            }
        };
        self.nest(&values)?;
        self.push(Value::Tuple(values))
    }

    fn set_items(&mut self, opcode: u8) -> Result<(), PickleError> {
        let values = if opcode == b'u' {
            self.since_mark()?
        } else {
            let value = self.pop()?;
            vec![self.pop()?, value]
        };
        self.nest(&values)?;
        let error = self.senseless();
        let Some(Value::Dict(items)) = self.stack.last_mut() else { return Err(error) };
        let mut values = values.into_iter();
        while let Some(key) = values.next() {
            items.push((key, values.next().ok_or(error.clone())?));
        }
        Ok(())
    }

    fn append(&mut self, opcode: u8) -> Result<(), PickleError> {
        let values = if opcode == b'e' { self.since_mark()? } else { vec![self.pop()?] };
        self.nest(&values)?;
        let error = self.senseless();
        let Some(Value::List(items)) = self.stack.last_mut() else { return Err(error) };
        items.extend(values);
        Ok(())
    }

    fn remember(&mut self, opcode: u8) -> Result<(), PickleError> {
        let key = match opcode {
            b'q' => self.number(1)? as u32,
            b'r' => self.number(4)? as u32,
            _ => self.memo.len() as u32,
        };
        // Containers are still being filled when they are remembered; recalling one would give an empty copy.
        let value = match self.stack.last() {
            Some(Value::Dict(_) | Value::List(_)) => Value::Dict(Vec::new()),
            Some(value) => value.clone(),
            None => return Err(self.senseless()),
        };
        self.copied += size(&value);
        self.memo.push((key, value));
        Ok(())
    }

    fn recall(&mut self, opcode: u8) -> Result<(), PickleError> {
        let key = self.number(if opcode == b'h' { 1 } else { 4 })? as u32;
        // Keys count up, so that the place is nearly always the key itself.
        let direct = self.memo.get(key as usize).filter(|(found, _)| *found == key);
        let found = direct.or_else(|| self.memo.iter().rev().find(|(found, _)| *found == key));
        match found {
            None | Some((_, Value::Dict(_))) => Err(self.senseless()),
            Some((_, value)) => {
                let value = value.clone();
                self.copied += size(&value);
                self.push(value)
            }
        }
    }

    fn global(&mut self, opcode: u8) -> Result<(), PickleError> {
        let name = if opcode == b'c' {
            format!("{}.{}", self.line()?, self.line()?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            let (Value::Text(module), Value::Text(name)) = (module, name) else { return Err(self.senseless()) };
            format!("{module}.{name}")
        };
        let known = GLOBALS.into_iter().find(|known| *known == name);
        self.push(Value::Global(known.ok_or(PickleError::Global { name })?))
    }

    fn line(&mut self) -> Result<String, PickleError> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or(PickleError::Short { at: self.bytes.len() })?;
        let line = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.at += length + 1;
        Ok(line)
    }

    fn reduce(&mut self) -> Result<(), PickleError> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Global(function), Value::Tuple(mut arguments)) = (function, arguments) else {
            return Err(self.senseless());
        };
        let made = match (function, arguments.len()) {
            ("collections.OrderedDict", 0) => Value::Dict(Vec::new()),
            ("torch._utils._rebuild_tensor_v2", 4..) => Value::Tensor(arguments),
            // A parameter is the tensor that is its first argument.
            ("torch._utils._rebuild_parameter", 1..) => arguments.swap_remove(0),
            ("torch.Size", 1) => arguments.swap_remove(0),
            _ => return Err(self.senseless()),
        };
        self.push(made)
    }
}

fn is_shallow(value: &Value, levels: usize) -> bool {
    let Some(levels) = levels.checked_sub(1) else { return false };
    match value {
        Value::Tuple(values) | Value::List(values) | Value::Tensor(values) => {
            values.iter().all(|value| is_shallow(value, levels))
        }
        Value::Dict(items) => items.iter().all(|(key, value)| is_shallow(key, levels) && is_shallow(value, levels)),
        Value::Persistent(id) => is_shallow(id, levels),
        Value::Other | Value::Int(_) | Value::Text(_) | Value::Global(_) => true,
    }
}

/// Values in a value, itself included.
fn size(value: &Value) -> usize {
    1 + match value {
        Value::Tuple(values) | Value::List(values) | Value::Tensor(values) => values.iter().map(size).sum(),
        Value::Dict(items) => items.iter().map(|(key, value)| size(key) + size(value)).sum(),
        Value::Persistent(id) => size(id),
        Value::Other | Value::Int(_) | Value::Text(_) | Value::Global(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::{PickleError, Value, read};

    #[test]
    fn numbers_have_their_signs() {
        for (bytes, number) in
            [(&b"K\xff."[..], 255), (b"M\x00\x80.", 32768), (b"J\xff\xff\xff\xff.", -1), (b"\x8a\x02\x00\xff.", -256)]
        {
            assert_eq!(read(bytes), Ok(Value::Int(number)));
        }
    }

    #[test]
    fn nesting_without_end_is_refused_before_it_exhausts_the_stack() {
        let tuples = [&[b')'][..], &[0x85; 1_000_000]].concat();
        assert!(matches!(read(&tuples), Err(PickleError::TooLarge { .. })));
    }

    #[test]
    fn doubling_without_end_is_refused_before_it_exhausts_the_memory() {
        // Each round remembers the tuple and makes one of two copies of it.
        let round = |key: u8| [b'q', key, b'h', key, 0x86];
        let bytes: Vec<u8> = [b')'].into_iter().chain((0..30).flat_map(round)).collect();
        assert!(matches!(read(&bytes), Err(PickleError::TooLarge { .. })));
    }

    #[test]
    fn a_container_that_is_recalled_is_refused() {
        assert!(matches!(read(b"}q\x00h\x00."), Err(PickleError::Senseless { .. })));
    }

    #[test]
    fn what_a_mark_opened_does_not_reach_below_it() {
        assert!(matches!(read(b"K\x01(\x85."), Err(PickleError::Senseless { .. })));
        assert!(matches!(read(b"u."), Err(PickleError::Senseless { .. })));
        assert_eq!(read(b""), Err(PickleError::Short { at: 0 }));
        assert_eq!(read(b"i"), Err(PickleError::Opcode { opcode: b'i', at: 0 }));
    }
}
