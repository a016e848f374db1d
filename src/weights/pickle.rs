//! Pickles, read instruction by instruction and never run: which imports would a program follow, which tensors are built?
//!
//! Only what builds tensors may be imported ([`is_allowed`]); everything else is told by name. A list of what is
//! forbidden would be bypassed. All instructions of protocols 0 to 5 are followed, so that names that are put together
//! from the memo or by `STACK_GLOBAL` are seen as the program would see them.

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Seek};

use crate::weights::WeightsError;

mod allowed;
mod input;
mod lines;
mod tensors;

pub use allowed::is_allowed;
pub(crate) use input::Input;
use lines::{decimal, quoted, unescaped};
pub(crate) use tensors::{Built, Storage};

/// The longest pickle that is followed; that of the largest model has some MiB.
pub const MAX_PICKLE: u64 = 256 << 20;

/// How many different things that are forbidden are told of one pickle.
const MAX_FINDINGS: usize = 20;

/// The place of a value among all that the pickle made.
type Id = usize;

/// A value, as far as tensors and imports depend on it.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Other,
    Int(i64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A module and the name in it.
    Import(String, String),
    /// What torch calls its storages by.
    Persistent(Id),
    /// An import that is called, and the arguments.
    Call(Id, Vec<Id>),
}

/// What following a pickle showed.
#[derive(Debug)]
pub(crate) struct Followed {
    values: Vec<Value>,
    /// What the pickle makes.
    root: Id,
    /// What it would do that building tensors does not need, in words.
    pub(crate) findings: BTreeSet<String>,
    /// Whether that includes the import of something that has a name as Python's have.
    pub(crate) has_forbidden_import: bool,
    /// Whether such an import is called.
    pub(crate) calls_forbidden: bool,
}

/// Follows one pickle from where `input` stands to its end.
///
/// Forbidden imports do not stop it: all of them are found. An error means that no program could read it either,
/// or that larder cannot follow it; what was found until then is in the error where it is dangerous.
pub(crate) fn follow<R: Read + Seek>(input: &mut Input<R>) -> Result<Followed, WeightsError> {
    let mut machine = Machine {
        input,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        findings: BTreeSet::new(),
        has_forbidden_import: false,
        calls_forbidden: false,
    };
    let root = match machine.run() {
        Ok(root) => root,
        // What it would have done before it broke counts more than that it is broken.
        Err(_) if !machine.findings.is_empty() => machine.push(Value::Other),
        Err(error) => return Err(error),
    };
    let Machine { values, findings, has_forbidden_import, calls_forbidden, .. } = machine;
    Ok(Followed { values, root, findings, has_forbidden_import, calls_forbidden })
}

struct Machine<'a, R> {
    input: &'a mut Input<R>,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    findings: BTreeSet<String>,
    has_forbidden_import: bool,
    calls_forbidden: bool,
}

impl<R: Read + Seek> Machine<'_, R> {
    fn run(&mut self) -> Result<Id, WeightsError> {
        loop {
            match self.input.byte()? {
                b'.' => return self.pop(),
                opcode => self.step(opcode)?,
            }
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), WeightsError> {
        match opcode {
            0x80 => self.protocol(),
            0x95 => self.input.skip(8),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.drop_one(),
            b'1' => self.since_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
                Ok(())
            }
            b'N' | 0x88 | 0x89 | 0x97 => self.made(Value::Other),
            // A buffer that is made read-only stays what it is.
            0x98 => self.top().map(drop),
            b'I' | b'L' | b'J' | b'K' | b'M' | 0x8a | 0x8b | b'F' | b'G' => self.number(opcode),
            b'S' | b'V' | b'T' | b'U' | b'X' | 0x8c | 0x8d => self.text(opcode),
            b'B' | b'C' | 0x8e | 0x96 => self.bytes(opcode),
            b')' | b't' | 0x85..=0x87 => self.tuple(opcode),
            b']' => self.made(Value::List(Vec::new())),
            b'}' => self.made(Value::Dict(Vec::new())),
            0x8f => self.made(Value::Other),
            b'l' | b'd' | 0x91 => self.collection(opcode),
            b'a' | b'e' | 0x90 => self.append(opcode),
            b's' | b'u' => self.set_items(opcode),
            b'p' | b'q' | b'r' | 0x94 => self.remember(opcode),
            b'g' | b'h' | b'j' => self.recall(opcode),
            _ => self.step_to_objects(opcode),
        }
    }

    fn step_to_objects(&mut self, opcode: u8) -> Result<(), WeightsError> {
        match opcode {
            b'P' => {
                let id = self.input.line()?;
                let id = self.push(Value::Text(id));
                self.made(Value::Persistent(id))
            }
            b'Q' => {
                let id = self.pop()?;
                self.made(Value::Persistent(id))
            }
            b'c' => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                self.import(module, name)
            }
            0x93 => self.computed_import(),
            0x82..=0x84 => {
                let number = self.input.number(1 << (opcode - 0x82))?;
                self.find(format!("it uses the extension code {number}, which may stand for anything"));
                self.made(Value::Other)
            }
            b'R' | b'i' | b'o' | 0x81 | 0x92 => self.call(opcode),
            b'b' => self.build(),
            _ => {
                self.find(format!("it has the instruction 0x{opcode:02x}, which no protocol up to 5 knows"));
                Err(self.senseless())
            }
        }
    }

    fn protocol(&mut self) -> Result<(), WeightsError> {
        match self.input.byte()? {
            0..=5 => Ok(()),
            version => {
                self.find(format!("it is of protocol {version}, which larder does not know"));
                Err(self.senseless())
            }
        }
    }

    fn find(&mut self, what: String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.insert(what);
        }
    }

    fn senseless(&self) -> WeightsError {
        WeightsError::malformed(format!("the pickle does not make sense at byte {}", self.input.at()))
    }

    fn push(&mut self, value: Value) -> Id {
        self.values.push(value);
        self.values.len() - 1
    }

    fn made(&mut self, value: Value) -> Result<(), WeightsError> {
        let id = self.push(value);
        self.stack.push(id);
        Ok(())
    }

    /// Values below the last mark belong to what the mark opened.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id, WeightsError> {
        self.stack[self.floor()..].last().copied().ok_or_else(|| self.senseless())
    }

    fn pop(&mut self) -> Result<Id, WeightsError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn drop_one(&mut self) -> Result<(), WeightsError> {
        if self.stack.len() > self.floor() {
            self.stack.pop();
            return Ok(());
        }
        self.marks.pop().map(drop).ok_or_else(|| self.senseless())
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, WeightsError> {
        let mark = self.marks.pop().ok_or_else(|| self.senseless())?;
        Ok(self.stack.split_off(mark))
    }

    fn number(&mut self, opcode: u8) -> Result<(), WeightsError> {
        let value = match opcode {
            b'K' => Value::Int(self.input.number(1)? as i64),
            b'M' => Value::Int(self.input.number(2)? as i64),
            b'J' => Value::Int(i64::from(self.input.number(4)? as u32 as i32)),
            b'G' => {
                self.input.skip(8)?;
                Value::Other
            }
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,
            _ => decimal(&self.input.line()?),
        };
        self.made(value)
    }

    fn long(&mut self, width: u32) -> Result<Value, WeightsError> {
        match self.input.number(width)? {
            0 => Ok(Value::Int(0)),
            length @ 1..=8 => {
                let unused = 64 - 8 * length as u32;
                Ok(Value::Int((self.input.number(length as u32)? << unused) as i64 >> unused))
            }
            length => self.input.skip(length).map(|()| Value::Other),
        }
    }

    fn text(&mut self, opcode: u8) -> Result<(), WeightsError> {
        let value = match opcode {
            b'V' => unescaped(&self.input.line()?),
            b'S' => quoted(&self.input.line()?),
            b'T' | b'U' => {
                let length = self.input.number(if opcode == b'T' { 4 } else { 1 })?;
                self.input.text(length)?.filter(|text| text.is_ascii()).map_or(Value::Other, Value::Text)
            }
            _ => {
                let width = match opcode {
                    b'X' => 4,
                    0x8c => 1,
                    _ => 8,
                };
                let length = self.input.number(width)?;
                self.input.text(length)?.map_or(Value::Other, Value::Text)
            }
        };
        self.made(value)
    }

    fn bytes(&mut self, opcode: u8) -> Result<(), WeightsError> {
        let width = match opcode {
            b'B' => 4,
            b'C' => 1,
            _ => 8,
        };
        let length = self.input.number(width)?;
        self.input.skip(length)?;
        self.made(Value::Other)
    }

    fn tuple(&mut self, opcode: u8) -> Result<(), WeightsError> {
        let members = match opcode {
            b')' => Vec::new(),
            b't' => self.since_mark()?,
            _ => {
                let mut members = Vec::new();
                for _ in 0..opcode - 0x84 {
                    members.insert(0, self.pop()?);
                }
                members
            }
        };
        self.made(Value::Tuple(members))
    }

    fn collection(&mut self, opcode: u8) -> Result<(), WeightsError> {
        let members = self.since_mark()?;
        let value = match opcode {
            b'l' => Value::List(members),
            b'd' => Value::Dict(pairs(&members).ok_or_else(|| self.senseless())?),
            _ => Value::Other,
        };
        self.made(value)
    }

    fn append(&mut self, opcode: u8) -> Result<(), WeightsError> {
        let members = if opcode == b'a' { vec![self.pop()?] } else { self.since_mark()? };
        let target = self.top()?;
        if let Value::List(list) = &mut self.values[target] {
            list.extend(members);
        }
        Ok(())
    }

    fn set_items(&mut self, opcode: u8) -> Result<(), WeightsError> {
        let members = if opcode == b's' {
            let value = self.pop()?;
            vec![self.pop()?, value]
        } else {
            self.since_mark()?
        };
        let items = pairs(&members).ok_or_else(|| self.senseless())?;
        let target = self.top()?;
        if let Value::Dict(dict) = &mut self.values[target] {
            dict.extend(items);
        }
        Ok(())
    }

    fn remember(&mut self, opcode: u8) -> Result<(), WeightsError> {
        let key = match opcode {
            b'p' => self.key()?,
            b'q' => self.input.number(1)?,
            b'r' => self.input.number(4)?,
            _ => self.memo.len() as u64,
        };
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, opcode: u8) -> Result<(), WeightsError> {
        let key = match opcode {
            b'g' => self.key()?,
            b'h' => self.input.number(1)?,
            _ => self.input.number(4)?,
        };
        let id = *self.memo.get(&key).ok_or_else(|| self.senseless())?;
        self.stack.push(id);
        Ok(())
    }

    fn key(&mut self) -> Result<u64, WeightsError> {
        let line = self.input.line()?;
        line.trim().parse().map_err(|_| self.senseless())
    }

    fn import(&mut self, module: String, name: String) -> Result<(), WeightsError> {
        if !is_allowed(&module, &name) {
            self.has_forbidden_import |= is_name(&module) && is_name(&name);
            self.find(format!("it imports {} from {}", shown(&name), shown(&module)));
        }
        self.made(Value::Import(module, name))
    }

    /// `STACK_GLOBAL`: both names are values, which the memo may have brought from anywhere.
    fn computed_import(&mut self) -> Result<(), WeightsError> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (&self.values[module], &self.values[name]) {
            (Value::Text(module), Value::Text(name)) => {
                let (module, name) = (module.clone(), name.clone());
                self.import(module, name)
            }
            _ => {
                self.find(format!("it imports something whose name is computed, at byte {}", self.input.at()));
                self.made(Value::Other)
            }
        }
    }

    fn call(&mut self, opcode: u8) -> Result<(), WeightsError> {
        let (function, arguments) = match opcode {
            b'i' => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                let arguments = self.since_mark()?;
                self.import(module, name)?;
                (self.pop()?, arguments)
            }
            b'o' => {
                let mut members = self.since_mark()?;
                let function = (!members.is_empty()).then(|| members.remove(0)).ok_or_else(|| self.senseless())?;
                (function, members)
            }
            _ => {
                if opcode == 0x92 {
                    self.pop()?;
                }
                let (arguments, function) = (self.pop()?, self.pop()?);
                let arguments =
                    if let Value::Tuple(arguments) = &self.values[arguments] { arguments.clone() } else { Vec::new() };
                (function, arguments)
            }
        };
        if let Value::Import(module, name) = &self.values[function] {
            self.calls_forbidden |= is_name(module) && is_name(name) && !is_allowed(module, name);
        } else {
            self.find(format!("it calls something that is no import, at byte {}", self.input.at()));
        }
        let value = self.result(function, arguments);
        self.made(value)
    }

    fn result(&self, function: Id, arguments: Vec<Id>) -> Value {
        match &self.values[function] {
            Value::Import(module, name) if module == "collections" && name != "Counter" => {
                Value::Dict(self.items_of(&arguments).unwrap_or_default())
            }
            _ => Value::Call(function, arguments),
        }
    }

    /// The items of a dictionary that is made from a list of pairs, as Python 2 wrote it.
    fn items_of(&self, arguments: &[Id]) -> Option<Vec<(Id, Id)>> {
        let Value::List(list) = &self.values[*arguments.first()?] else { return None };
        let pair = |id: &Id| match &self.values[*id] {
            Value::Tuple(pair) | Value::List(pair) => Some((*pair.first()?, *pair.get(1)?)),
            _ => None,
        };
        list.iter().map(pair).collect()
    }

    /// Gives a value its attributes. An import that is given attributes would be another one afterwards.
    fn build(&mut self) -> Result<(), WeightsError> {
        self.pop()?;
        let target = self.top()?;
        if let Value::Import(module, name) = &self.values[target] {
            let what = format!("it changes {} of {}", shown(name), shown(module));
            self.find(what);
        }
        Ok(())
    }
}

fn pairs(members: &[Id]) -> Option<Vec<(Id, Id)>> {
    let (pairs, rest) = members.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[key, value]| (*key, *value)).collect())
}

/// A name as it can be printed.
fn shown(name: &str) -> String {
    let name: String = name.chars().take(100).collect();
    if is_name(&name) { name } else { format!("{name:?}") }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "._<>".contains(c))
}
