//! The config map of `create_kernel` and `restart_kernel`. Problems are the exceptions that Python code reading such a
//! map would raise.

use rmpv::ValueRef;

use super::python;
use super::wire_error::WireError;
use crate::agent::request::{KernelConfig, VfolderMount};
use crate::resource::slot::{Amount, SlotAmounts};
use crate::runtime::{LabelMap, RegistryAuth};

type Pairs<'a> = [(ValueRef<'a>, ValueRef<'a>)];

/// Decodes the config map; keys that the agent does not use are ignored.
///
/// # Errors
/// `KeyError` for a missing key, otherwise what the value's nature suggests.
pub fn decode(config: &Pairs<'_>) -> Result<KernelConfig, WireError> {
    let image = map(config, "image")?;
    let registry = map(image, "registry")?;
    Ok(KernelConfig {
        image: text(image, "canonical")?,
        registry: text(registry, "name")?,
        digest: optional(image, "digest").unwrap_or_default(),
        repo_digest: optional(image, "repo_digest").filter(|digest| !digest.is_empty()),
        auth: auth(registry),
        labels: labels(image)?,
        slots: slots(map(config, "resource_slots")?)?,
        idle_timeout: idle_timeout(config)?,
        mounts: mounts(config)?,
        environ: environ(config)?,
    })
}

fn get<'m, 'a>(map: &'m Pairs<'a>, key: &str) -> Option<&'m ValueRef<'a>> {
    let is_key = |found: &ValueRef<'a>| matches!(found, ValueRef::String(text) if text.as_str() == Some(key));
    map.iter()
        .find(|(found, _)| is_key(found))
        .map(|(_, value)| value)
        .filter(|value| !matches!(value, ValueRef::Nil))
}

fn required<'m, 'a>(map: &'m Pairs<'a>, key: &str) -> Result<&'m ValueRef<'a>, WireError> {
    get(map, key).ok_or_else(|| WireError::one("builtins.KeyError", key))
}

fn map<'m, 'a>(outer: &'m Pairs<'a>, key: &str) -> Result<&'m Pairs<'a>, WireError> {
    as_map(required(outer, key)?, key)
}

fn as_map<'m, 'a>(value: &'m ValueRef<'a>, key: &str) -> Result<&'m Pairs<'a>, WireError> {
    match value {
        ValueRef::Map(pairs) => Ok(pairs),
        other => {
            let name = python::type_name(other);
            let text = format!("{key} must be a map, not {name}");
            Err(WireError::one("builtins.TypeError", text))
        }
    }
}

fn text(map: &Pairs<'_>, key: &str) -> Result<String, WireError> {
    required(map, key).map(python::text)
}

fn optional(map: &Pairs<'_>, key: &str) -> Option<String> {
    get(map, key).map(python::text)
}

/// Credentials count only when both are given and not empty.
fn auth(registry: &Pairs<'_>) -> Option<RegistryAuth> {
    let given = |key| optional(registry, key).filter(|text| !text.is_empty());
    Some(RegistryAuth {
        username: given("username")?,
        password: given("password")?,
    })
}

fn labels(image: &Pairs<'_>) -> Result<LabelMap, WireError> {
    let Some(labels) = get(image, "labels") else {
        return Ok(LabelMap::new());
    };
    Ok(as_map(labels, "labels")?
        .iter()
        .map(|(key, value)| (python::text(key), python::text(value)))
        .collect())
}

/// Amounts are decimal texts, also with an exponent: ten cores come as `1E+1`.
fn slots(slots: &Pairs<'_>) -> Result<SlotAmounts, WireError> {
    slots
        .iter()
        .map(|(name, amount)| {
            let name = python::text(name);
            match Amount::parse(&python::text(amount)) {
                Ok(amount) => Ok((name, amount)),
                Err(invalid) => {
                    let text = format!("resource slot {name}: {invalid}");
                    Err(WireError::one("builtins.ValueError", text))
                }
            }
        })
        .collect()
}

/// Seconds; absent on restart. Less than one is never.
fn idle_timeout(config: &Pairs<'_>) -> Result<u64, WireError> {
    let Some(value) = get(config, "idle_timeout") else {
        return Ok(0);
    };
    let seconds = python::text(value);
    match seconds.split('.').next().and_then(python::parse_int) {
        Some(seconds) => Ok(u64::try_from(seconds).unwrap_or(0)),
        None => {
            let text = format!("idle_timeout: {seconds:?} is no number of seconds");
            Err(WireError::one("builtins.ValueError", text))
        }
    }
}

fn mounts(config: &Pairs<'_>) -> Result<Vec<VfolderMount>, WireError> {
    match get(config, "mounts") {
        None => Ok(Vec::new()),
        Some(ValueRef::Array(items)) => items.iter().map(mount).collect(),
        Some(other) => {
            let text = format!("mounts must be an array, not {}", python::type_name(other));
            Err(WireError::one("builtins.TypeError", text))
        }
    }
}

/// `[name, host, id]` and mostly a permission; `wd` is plain `rw` (Q31).
fn mount(item: &ValueRef<'_>) -> Result<VfolderMount, WireError> {
    let fields: Vec<String> = match item {
        ValueRef::Array(fields) => fields.iter().map(python::text).collect(),
        _ => Vec::new(),
    };
    let (fields, permission) = match fields.as_slice() {
        [name, host, id] => ([name, host, id], "rw"),
        [name, host, id, permission] => ([name, host, id], permission.as_str()),
        _ => {
            let text = format!("unexpected vfolder mount: {}", python::repr(item));
            return Err(WireError::one("builtins.RuntimeError", text));
        }
    };
    let read_only = match permission {
        "ro" => true,
        "rw" | "wd" => false,
        other => {
            let text = format!("{} is not a valid MountPermission", python::quote(other));
            return Err(WireError::one("builtins.ValueError", text));
        }
    };
    let [name, host, id] = fields.map(Clone::clone);
    Ok(VfolderMount {
        name,
        host,
        id,
        read_only,
    })
}

fn environ(config: &Pairs<'_>) -> Result<Vec<(String, String)>, WireError> {
    let Some(environ) = get(config, "environ") else {
        return Ok(Vec::new());
    };
    Ok(as_map(environ, "environ")?
        .iter()
        .map(|(key, value)| (python::text(key), python::text(value)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map<'a>(pairs: Vec<(&'a str, ValueRef<'a>)>) -> ValueRef<'a> {
        let pair = |(key, value): (&'a str, ValueRef<'a>)| (ValueRef::from(key), value);
        ValueRef::Map(pairs.into_iter().map(pair).collect())
    }

    fn list<'a>(items: &[&'a str]) -> ValueRef<'a> {
        ValueRef::Array(items.iter().map(|&item| item.into()).collect())
    }

    fn config<'a>(more: Vec<(&'a str, ValueRef<'a>)>) -> Vec<(ValueRef<'a>, ValueRef<'a>)> {
        let registry = map(vec![
            ("name", "index.docker.io".into()),
            ("url", "u".into()),
            ("username", "me".into()),
            ("password", "".into()),
        ]);
        let image = map(vec![
            ("registry", registry),
            ("digest", "sha256:c".into()),
            ("canonical", "index.docker.io/lablup/python:3.6".into()),
            ("labels", map(vec![("ai.backend.kernelspec", "1".into())])),
        ]);
        let slots = map(vec![("cpu", "1E+1".into()), ("mem", "1073741824".into())]);
        let mut pairs = vec![("image", image), ("resource_slots", slots)];
        pairs.extend(more);
        match map(pairs) {
            ValueRef::Map(pairs) => pairs,
            _ => Vec::new(),
        }
    }

    #[test]
    fn exponents_are_amounts() {
        let decoded = decode(&config(vec![])).expect("a config");
        let cpu = decoded.slots.get("cpu").expect("given");
        assert_eq!(cpu.value(), 10.into());
        assert_eq!(cpu.to_string(), "1E+1", "files show the manager's own form");
        let mem = decoded.slots.get("mem").expect("given");
        assert_eq!(mem.value(), (1 << 30).into());
        assert_eq!(decoded.auth, None, "an empty password is none");
        assert_eq!(decoded.labels["ai.backend.kernelspec"], "1");
        assert_eq!((decoded.idle_timeout, decoded.mounts.len()), (0, 0));
    }

    #[test]
    fn mounts_have_three_or_four_fields() {
        let mounts = ValueRef::Array(vec![
            list(&["a", "local", "0a", "ro"]),
            list(&["b", "local", "0b", "wd"]),
            list(&["c", "local", "0c"]),
        ]);
        let decoded = decode(&config(vec![("mounts", mounts)])).expect("a config");
        let read_only: Vec<_> = decoded.mounts.iter().map(|mount| mount.read_only).collect();
        assert_eq!(read_only, [true, false, false]);
        assert_eq!(decoded.mounts[2].id, "0c");
        let two = ValueRef::Array(vec![list(&["a", "b"])]);
        let error = decode(&config(vec![("mounts", two)])).expect_err("two fields");
        assert!(error.repr().starts_with("RuntimeError("));
        let odd = ValueRef::Array(vec![list(&["a", "b", "c", "x"])]);
        let error = decode(&config(vec![("mounts", odd)])).expect_err("x");
        assert_eq!(
            error.repr(),
            "ValueError(\"'x' is not a valid MountPermission\",)"
        );
    }

    #[test]
    fn a_missing_key_is_a_key_error() {
        let error = decode(&[]).expect_err("nothing there");
        assert_eq!(error.repr(), "KeyError('image',)");
    }

    #[test]
    fn amounts_that_are_none_are_refused() {
        for bad in ["x", "", "-1", "NaN", "Infinity", "1E+99"] {
            let mut config = config(vec![]);
            config[1].1 = map(vec![("cpu", bad.into())]);
            assert!(decode(&config).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_environment_keeps_its_order() {
        let environ = map(vec![("B", "2".into()), ("A", 1.into())]);
        let decoded = decode(&config(vec![("environ", environ)])).expect("a config");
        let expected = [("B", "2"), ("A", "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(decoded.environ, expected);
    }
}
