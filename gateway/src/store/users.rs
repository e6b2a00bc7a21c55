//! The gateway's own users, their passwords and one-time codes.

use std::collections::BTreeMap;

use sqlx::{Row as _, any::AnyRow};

use super::{
    Answered as _, Concern, Store, StoreError, Transaction, flag, hash, sorted, sql, unix,
};

/// A user, without the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name, as clusters see it.
    pub name: String,
    /// The groups, as clusters see them, sorted.
    pub groups: Vec<String>,
    /// Whether it is shut out.
    pub disabled: bool,
    /// Whether it is a `gatewayOperator`.
    pub operator: bool,
    /// Since when it exists, in Unix seconds.
    pub created: u64,
}

/// Why a user isn't made or changed.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The name is taken.
    #[error("user {0:?} already exists")]
    Exists(String),
    /// There is no such user.
    #[error("user {0:?} does not exist")]
    Unknown(String),
    /// Nobody would be left who manages the gateway.
    #[error("user {0:?} is the last gatewayOperator; make another first")]
    LastOperator(String),
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a sign-in is checked against.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The argon2id hash of the password, if one is set.
    pub password: Option<String>,
    /// Whether a one-time code is outstanding, good until then (Unix seconds).
    pub code_until: Option<u64>,
    /// Whether the user is shut out.
    pub disabled: bool,
}

impl Store {
    /// The user of this name. From memory, mostly.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn user(&self, name: &str) -> Result<Option<User>, StoreError> {
        let name = name.to_owned();
        let writes = match self.cache().recall::<User>(&name) {
            Ok(user) => return Ok(user),
            Err(writes) => writes,
        };
        let found =
            sqlx::query("SELECT name, disabled, operator, created FROM users WHERE name = $1")
                .bind(&name)
                .fetch_optional(self.reader()?)
                .answered(self)
                .await?;
        let user = match found {
            None => None,
            Some(row) => {
                let groups =
                    sqlx::query_scalar("SELECT group_name FROM user_groups WHERE user_name = $1")
                        .bind(&name)
                        .fetch_all(self.reader()?)
                        .answered(self)
                        .await?;
                Some(user(&row, groups).map_err(|error| self.error(error))?)
            }
        };
        self.cache().remember(name, user.clone(), writes);
        Ok(user)
    }

    /// All users, by name.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn users(&self) -> Result<Vec<User>, StoreError> {
        let reader = self.reader()?;
        let read = async {
            let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
            let rows = sqlx::query("SELECT user_name, group_name FROM user_groups")
                .fetch_all(reader)
                .await?;
            for row in rows {
                groups
                    .entry(row.try_get(0)?)
                    .or_default()
                    .push(row.try_get(1)?);
            }
            let rows = sqlx::query("SELECT name, disabled, operator, created FROM users")
                .fetch_all(reader)
                .await?;
            rows.iter()
                .map(|row| {
                    user(
                        row,
                        groups
                            .remove(&row.try_get::<String, _>(0)?)
                            .unwrap_or_default(),
                    )
                })
                .collect::<Result<_, _>>()
        };
        let users = read.answered(self).await?;
        Ok(sorted(users, |a: &User, b| a.name.cmp(&b.name)))
    }

    /// Makes a user that sets a password with `code` until `expires`.
    ///
    /// # Errors
    /// See [`UserError`].
    pub async fn create_user(&self, new: &User, code: &str, expires: u64) -> Result<(), UserError> {
        let mut transaction = self.begin().await?;
        let made = sqlx::query(
            "INSERT INTO users (name, password, disabled, operator, created) VALUES ($1, NULL, $2, $3, $4) \
             ON CONFLICT DO NOTHING",
        )
        .bind(&new.name)
        .bind(i16::from(new.disabled))
        .bind(i16::from(new.operator))
        .bind(sql(new.created))
        .execute(&mut *transaction)
        .answered(self)
        .await?;
        if made.rows_affected() == 0 {
            return Err(UserError::Exists(new.name.clone()));
        }
        self.insert_groups(&mut transaction, &new.name, &new.groups)
            .await?;
        self.replace_code(&mut transaction, &new.name, code, expires)
            .await?;
        Ok(self
            .commit(transaction, Concern::User(new.name.clone()))
            .await?)
    }

    /// Shuts a user out, refresh tokens included, or lets it in again.
    ///
    /// # Errors
    /// See [`UserError`].
    pub async fn set_disabled(&self, name: &str, disabled: bool) -> Result<(), UserError> {
        let mut transaction = self.begin().await?;
        let operators: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM users WHERE operator = 1 AND disabled = 0 AND name <> $1",
        )
        .bind(name)
        .fetch_one(&mut *transaction)
        .answered(self)
        .await?;
        let operator: Option<i16> =
            sqlx::query_scalar("SELECT operator FROM users WHERE name = $1")
                .bind(name)
                .fetch_optional(&mut *transaction)
                .answered(self)
                .await?;
        match operator {
            None => return Err(UserError::Unknown(name.to_owned())),
            Some(operator) if disabled && flag(operator) && operators == 0 => {
                return Err(UserError::LastOperator(name.to_owned()));
            }
            Some(_) => {}
        }
        self.execute_for(
            &mut transaction,
            "UPDATE users SET disabled = $2 WHERE name = $1",
            name,
            disabled,
        )
        .await?;
        if disabled {
            self.sign_out(&mut transaction, name).await?;
        }
        Ok(self
            .commit(transaction, Concern::User(name.to_owned()))
            .await?)
    }

    /// Takes the password and every sign-in away; `code` sets a new password until `expires`.
    ///
    /// # Errors
    /// See [`UserError`].
    pub async fn reset_password(
        &self,
        name: &str,
        code: &str,
        expires: u64,
    ) -> Result<(), UserError> {
        let mut transaction = self.begin().await?;
        let found = sqlx::query("UPDATE users SET password = NULL WHERE name = $1")
            .bind(name)
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        if found.rows_affected() == 0 {
            return Err(UserError::Unknown(name.to_owned()));
        }
        self.sign_out(&mut transaction, name).await?;
        self.replace_code(&mut transaction, name, code, expires)
            .await?;
        Ok(self
            .commit(transaction, Concern::User(name.to_owned()))
            .await?)
    }

    /// Adds to groups, and takes out of others.
    ///
    /// # Errors
    /// See [`UserError`].
    pub async fn change_groups(
        &self,
        name: &str,
        add: &[String],
        remove: &[String],
    ) -> Result<(), UserError> {
        let mut transaction = self.begin().await?;
        let found: Option<i64> = sqlx::query_scalar("SELECT 1 FROM users WHERE name = $1")
            .bind(name)
            .fetch_optional(&mut *transaction)
            .answered(self)
            .await?;
        if found.is_none() {
            return Err(UserError::Unknown(name.to_owned()));
        }
        self.insert_groups(&mut transaction, name, add).await?;
        for group in remove {
            sqlx::query("DELETE FROM user_groups WHERE user_name = $1 AND group_name = $2")
                .bind(name)
                .bind(group)
                .execute(&mut *transaction)
                .answered(self)
                .await?;
        }
        Ok(self
            .commit(transaction, Concern::User(name.to_owned()))
            .await?)
    }

    /// What a sign-in as this user is checked against.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn credentials(&self, name: &str) -> Result<Option<Credentials>, StoreError> {
        let reader = self.reader()?;
        let read = async {
            let row = sqlx::query(
                "SELECT u.password, u.disabled, c.expires FROM users u \
                 LEFT JOIN one_time_codes c ON c.user_name = u.name WHERE u.name = $1",
            )
            .bind(name)
            .fetch_optional(reader)
            .await?;
            row.map(|row| {
                Ok(Credentials {
                    password: row.try_get(0)?,
                    disabled: flag(row.try_get(1)?),
                    code_until: row.try_get::<Option<i64>, _>(2)?.map(unix),
                })
            })
            .transpose()
        };
        read.answered(self).await
    }

    /// Uses up a one-time code and sets the password. `false` when the code is not this user's, used or over.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn redeem_code(
        &self,
        name: &str,
        code: &str,
        password: &str,
        now: u64,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let used = sqlx::query(
            "DELETE FROM one_time_codes WHERE user_name = $1 AND hash = $2 AND expires > $3",
        )
        .bind(name)
        .bind(hash(code))
        .bind(sql(now))
        .execute(&mut *transaction)
        .answered(self)
        .await?;
        if used.rows_affected() == 0 {
            return Ok(false);
        }
        let set = sqlx::query("UPDATE users SET password = $2 WHERE name = $1 AND disabled = 0")
            .bind(name)
            .bind(password)
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        if set.rows_affected() == 0 {
            return Ok(false);
        }
        self.commit(transaction, Concern::Tokens).await?;
        Ok(true)
    }

    async fn insert_groups(
        &self,
        transaction: &mut Transaction,
        name: &str,
        groups: &[String],
    ) -> Result<(), StoreError> {
        for group in groups {
            sqlx::query("INSERT INTO user_groups (user_name, group_name) VALUES ($1, $2) ON CONFLICT DO NOTHING")
                .bind(name)
                .bind(group)
                .execute(&mut **transaction)
                .answered(self)
                .await?;
        }
        Ok(())
    }

    async fn replace_code(
        &self,
        transaction: &mut Transaction,
        name: &str,
        code: &str,
        expires: u64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO one_time_codes (user_name, hash, expires) VALUES ($1, $2, $3) \
             ON CONFLICT (user_name) DO UPDATE SET hash = excluded.hash, expires = excluded.expires",
        )
        .bind(name)
        .bind(hash(code))
        .bind(sql(expires))
        .execute(&mut **transaction)
        .answered(self)
        .await?;
        Ok(())
    }

    /// Ends every sign-in, those that are under way included, and the access tokens that came of them.
    async fn sign_out(&self, transaction: &mut Transaction, name: &str) -> Result<(), StoreError> {
        for query in [
            "DELETE FROM refresh_families WHERE user_name = $1",
            "DELETE FROM authorization_codes WHERE user_name = $1",
            "UPDATE sign_ins SET revoked = 1 WHERE revoked = 0 AND principal = 'user:' || $1",
        ] {
            sqlx::query(query)
                .bind(name)
                .execute(&mut **transaction)
                .answered(self)
                .await?;
        }
        Ok(())
    }

    async fn execute_for(
        &self,
        transaction: &mut Transaction,
        query: &'static str,
        name: &str,
        value: bool,
    ) -> Result<(), StoreError> {
        sqlx::query(query)
            .bind(name)
            .bind(i16::from(value))
            .execute(&mut **transaction)
            .answered(self)
            .await?;
        Ok(())
    }
}

fn user(row: &AnyRow, mut groups: Vec<String>) -> Result<User, sqlx::Error> {
    groups.sort();
    Ok(User {
        name: row.try_get(0)?,
        disabled: flag(row.try_get(1)?),
        operator: flag(row.try_get(2)?),
        created: unix(row.try_get(3)?),
        groups,
    })
}
