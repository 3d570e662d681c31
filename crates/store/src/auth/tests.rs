use std::time::Duration;

use super::tokens::{Issued, JwtOptions};
use super::*;
use crate::pb::authpb::UserAddOptions;
use crate::pb::authpb::permission::Type;

fn user(name: &str) -> Op {
    Op::UserAdd(rpc::AuthUserAddRequest {
        name: name.into(),
        hashed_password: hash_password("pw", 4).unwrap(),
        ..Default::default()
    })
}

fn role(name: &str) -> Op {
    Op::RoleAdd(rpc::AuthRoleAddRequest { name: name.into() })
}

fn grant(user: &str, role: &str) -> Op {
    Op::UserGrantRole(rpc::AuthUserGrantRoleRequest {
        user: user.into(),
        role: role.into(),
    })
}

fn revoke(user: &str, role: &str) -> Op {
    Op::UserRevokeRole(rpc::AuthUserRevokeRoleRequest {
        name: user.into(),
        role: role.into(),
    })
}

fn permit(role: &str, key: &str, end: &str, kind: Type) -> Op {
    Op::RoleGrantPermission(rpc::AuthRoleGrantPermissionRequest {
        name: role.into(),
        perm: Some(Permission {
            perm_type: kind as i32,
            key: key.into(),
            range_end: end.into(),
        }),
    })
}

fn enable() -> Op {
    Op::Enable(rpc::AuthEnableRequest {})
}

fn done(auth: &mut Auth, ops: impl IntoIterator<Item = Op>) {
    for op in ops {
        auth.apply(&op)
            .unwrap_or_else(|error| panic!("{op:?}: {error}"));
    }
}

fn on() -> Auth {
    let mut auth = Auth::default();
    done(
        &mut auth,
        [user("root"), role("root"), grant("root", "root"), enable()],
    );
    auth
}

fn who(auth: &Auth, name: &str) -> Identity {
    Identity {
        user: name.into(),
        revision: auth.revision(),
    }
}

#[test]
fn refusals_are_those_of_etcd() {
    let mut auth = Auth::default();
    let mut refused = |op: Op| {
        let revision = auth.revision();
        let error = auth.apply(&op).unwrap_err();
        assert_eq!(auth.revision(), revision, "{op:?}");
        error.to_string()
    };
    assert_eq!(refused(enable()), "etcdserver: root user does not exist");
    assert_eq!(refused(user("")), "etcdserver: user name is empty");
    assert_eq!(refused(role("")), "etcdserver: role name is empty");
    assert_eq!(refused(grant("u", "r")), "etcdserver: user name not found");
    assert_eq!(
        refused(permit("r", "a", "", Type::Read)),
        "etcdserver: role name not found"
    );
    assert_eq!(
        refused(permit("r", "b", "a", Type::Read)),
        "etcdserver: invalid auth management"
    );

    done(&mut auth, [user("root"), user("u"), role("r")]);
    let mut refused = |op: Op| auth.apply(&op).unwrap_err().to_string();
    assert_eq!(
        refused(enable()),
        "etcdserver: root user does not have root role"
    );
    assert_eq!(refused(user("u")), "etcdserver: user name already exists");
    assert_eq!(refused(role("r")), "etcdserver: role name already exists");
    assert_eq!(refused(grant("u", "x")), "etcdserver: role name not found");
    assert_eq!(
        refused(revoke("u", "r")),
        "etcdserver: role is not granted to the user"
    );
    assert_eq!(
        refused(Op::RoleRevokePermission(
            rpc::AuthRoleRevokePermissionRequest {
                role: "r".into(),
                key: b"a".to_vec(),
                range_end: Vec::new(),
            }
        )),
        "etcdserver: permission is not granted to the role"
    );

    let mut auth = on();
    for op in [
        revoke("root", "root"),
        Op::UserDelete(rpc::AuthUserDeleteRequest {
            name: "root".into(),
        }),
        Op::RoleDelete(rpc::AuthRoleDeleteRequest {
            role: "root".into(),
        }),
    ] {
        assert_eq!(auth.apply(&op), Err(error::INVALID_AUTH_MGMT));
    }
}

#[test]
fn permissions_are_those_of_all_roles_and_of_the_newest_revision() {
    let mut auth = on();
    done(
        &mut auth,
        [
            user("u"),
            role("reader"),
            role("writer"),
            permit("reader", "a", "m", Type::Read),
            permit("writer", "k", "", Type::Readwrite),
            grant("u", "reader"),
            grant("u", "writer"),
        ],
    );
    let u = who(&auth, "u");
    assert_eq!(auth.permits(&u, b"b", b"c", Access::Read), Ok(()));
    assert_eq!(auth.permits(&u, b"k", b"", Access::Write), Ok(()));
    for (key, end, access) in [
        (b"b".as_slice(), b"".as_slice(), Access::Write),
        (b"b", b"z", Access::Read),
        (b"b", b"\0", Access::Read),
    ] {
        assert_eq!(
            auth.permits(&u, key, end, access),
            Err(error::PERMISSION_DENIED)
        );
    }
    let root = who(&auth, "root");
    assert_eq!(auth.permits(&root, b"\0", b"\0", Access::Write), Ok(()));
    assert_eq!(auth.permits_admin(&root), Ok(()));
    assert_eq!(auth.permits_admin(&u), Err(error::PERMISSION_DENIED));
    assert_eq!(
        auth.permits_admin(&Identity::default()),
        Err(error::USER_EMPTY)
    );
    assert_eq!(
        auth.permits(&Identity::default(), b"k", b"", Access::Read),
        Err(error::USER_EMPTY)
    );

    done(&mut auth, [revoke("u", "writer")]);
    assert_eq!(
        auth.permits(&u, b"b", b"", Access::Read),
        Err(error::AUTH_OLD_REVISION)
    );
    let u = who(&auth, "u");
    assert_eq!(
        auth.permits(&u, b"k", b"", Access::Write),
        Err(error::PERMISSION_DENIED)
    );
    let gone = who(&auth, "nobody");
    assert_eq!(
        auth.permits(&gone, b"k", b"", Access::Read),
        Err(error::PERMISSION_DENIED)
    );
}

#[test]
fn a_role_that_goes_is_taken_from_everyone() {
    let mut auth = on();
    done(
        &mut auth,
        [user("u"), role("r"), grant("u", "r"), grant("u", "r")],
    );
    assert_eq!(auth.user("u").unwrap(), ["r"]);
    done(
        &mut auth,
        [Op::RoleDelete(rpc::AuthRoleDeleteRequest {
            role: "r".into(),
        })],
    );
    assert!(auth.user("u").unwrap().is_empty());
    assert_eq!(auth.role("r"), Err(error::ROLE_NOT_FOUND));
}

#[test]
fn a_snapshot_is_all_of_it() {
    let mut auth = on();
    done(
        &mut auth,
        [
            role("r"),
            permit("r", "a", "\0", Type::Write),
            user("u"),
            grant("u", "r"),
        ],
    );
    let copy = Auth::restore(&auth.snapshot()).unwrap();
    assert_eq!(copy.snapshot(), auth.snapshot());
    assert_eq!(copy.revision(), auth.revision());
    assert!(copy.enabled());
    let u = who(&copy, "u");
    assert_eq!(copy.permits(&u, b"z", b"", Access::Write), Ok(()));
    assert!(Auth::restore(b"\xff\xff").is_err());
    assert_eq!(Auth::restore(b"").unwrap().revision(), 1);
}

#[test]
fn logins_are_refused_without_saying_why() {
    let mut auth = Auth::default();
    assert_eq!(auth.login("u"), Err(error::AUTH_NOT_ENABLED));
    auth = on();
    let certificate_only = Op::UserAdd(rpc::AuthUserAddRequest {
        name: "cn".into(),
        options: Some(UserAddOptions { no_password: true }),
        ..Default::default()
    });
    done(&mut auth, [user("u"), certificate_only]);
    assert_eq!(auth.login("nobody"), Err(error::AUTH_FAILED));
    assert_eq!(auth.login("cn"), Err(error::AUTH_FAILED));
    let login = auth.login("u").unwrap();
    assert_eq!(check_password("pw", &login.hash), Ok(()));
    assert_eq!(check_password("no", &login.hash), Err(error::AUTH_FAILED));
}

#[test]
fn simple_tokens_are_good_while_they_are_used() {
    let auth = on();
    let second = Duration::from_secs;
    let tokens = Tokens::new(Options::Simple { ttl: second(10) }).unwrap();
    let Ok(Issued::Announce(token)) = tokens.issue("root", auth.revision(), 7, second(0)) else {
        panic!("a simple token has to be announced");
    };
    assert!(token.ends_with(".7"), "{token}");
    let identify = |now| tokens.caller(&auth, Some(&token), Some("cn"), second(now));
    assert_eq!(identify(0), Err(error::INVALID_AUTH_TOKEN));
    tokens.learn(&token, "root", second(0));
    assert_eq!(identify(9).unwrap().user, "root");
    assert_eq!(identify(18).unwrap().user, "root");
    assert_eq!(identify(28), Err(error::INVALID_AUTH_TOKEN));

    tokens.learn(&token, "root", second(30));
    tokens.forget(&Void::User("other".into()));
    assert!(identify(31).is_ok());
    tokens.forget(&Void::User("root".into()));
    assert!(identify(31).is_err());

    assert_eq!(
        tokens.caller(&auth, None, Some("cn"), second(0)).unwrap(),
        who(&auth, "cn")
    );
    assert_eq!(
        tokens.caller(&auth, None, None, second(0)).unwrap(),
        Identity::default()
    );
}

#[test]
fn a_jwt_proves_itself_until_it_runs_out() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("secret");
    std::fs::write(&key, "a secret of many letters").unwrap();
    let options = |method: &str| {
        Options::Jwt(JwtOptions {
            sign_method: method.into(),
            private_key: Some(key.clone()),
            ttl: Duration::from_secs(60),
            ..Default::default()
        })
    };
    let tokens = Tokens::new(options("HS256")).unwrap();
    let auth = on();
    let second = Duration::from_secs;
    let Ok(Issued::Ready(token)) = tokens.issue("root", 5, 0, second(1000)) else {
        panic!("a JWT is ready");
    };
    let identity = tokens.identify(&auth, &token, second(1059)).unwrap();
    assert_eq!(
        identity,
        Identity {
            user: "root".into(),
            revision: 5
        }
    );
    assert!(tokens.identify(&auth, &token, second(1060)).is_err());
    assert!(tokens.identify(&auth, "x.y.z", second(0)).is_err());
    let other = Tokens::new(options("HS512")).unwrap();
    assert!(other.identify(&auth, &token, second(0)).is_err());

    for (method, because) in [("RS256", "pub-key="), ("ROT13", "not known")] {
        let error = Tokens::new(options(method)).unwrap_err();
        assert!(error.contains(because), "{error}");
    }
}
