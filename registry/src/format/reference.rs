//! The reference of all kinds and fields, written from the very tables that the decoder checks against.

use std::fmt::Write;

use super::document::{group_of, table_of};
use super::fields::{Field, State};
use super::kinds::{LATER_KINDS, OTHER_KINDS};
use crate::resource::KINDS;

const INTRODUCTION: &str = "\
# Resources

What each field of each kind does. This page is written from the tables that the reader itself checks against
(`baremesh reference` prints it).

Each field is in one of three states:

- **enforced**: it does what it says;
- **no effect**: it is taken, does nothing, and a warning says why;
- **refused**: it is an error that says what to do.

A field that is not listed is an error. Beside the fields below stand `name`, `namespace` (`default` unless written) and
`labels`: in TOML next to them, in YAML in `metadata`. Labels count for WorkloadEntry; elsewhere they have no effect.

## Forms

TOML, one array of tables a kind:

```toml
[[Service]]
name = \"orders\"
ports = [{ port = 8080, protocol = \"http\" }]
```

Istio's YAML, several documents a file, `kind: List` included. The versions v1, v1beta1, v1alpha3 and v1alpha1 are the same:

```yaml
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: shop
spec:
  mtls:
    mode: STRICT
```

`istio-system` means the root namespace in policies, and the trust domain `cluster.local` in principals means the mesh's own.
";

/// The reference as Markdown.
pub fn reference() -> String {
    let mut out = INTRODUCTION.to_owned();
    for kind in KINDS {
        _ = write!(out, "\n## {kind}\n\n`apiVersion: {}/v1`\n\n", group_of(kind));
        out.push_str("| field | state | |\n|---|---|---|\n");
        for field in table_of(kind) {
            row(&mut out, field);
        }
    }
    out.push_str("\n## Kinds that a later version takes\n\nThey are refused by name until then: ");
    out.push_str(&LATER_KINDS.map(|kind| format!("`{kind}`")).join(", "));
    out.push_str(".\n\n## Kinds that are refused\n\n| kind | instead |\n|---|---|\n");
    for (kind, instead) in OTHER_KINDS {
        _ = writeln!(out, "| `{kind}` | {instead} |");
    }
    out
}

fn row(out: &mut String, field: &Field) {
    let state = match field.state {
        State::Enforced => "enforced",
        State::NoEffect => "no effect",
        State::Refused => "refused",
    };
    _ = writeln!(out, "| `{}` | {state} | {} |", field.path, field.note);
}
