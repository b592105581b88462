package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	pingTimeout      = time.Second // for an idle connection to prove that it lives
	maxConnLifetime  = time.Hour
	maxConnIdle      = 10 * time.Minute
	idleTransaction  = "60000" // milliseconds after which the server ends a transaction that we forgot
	unreplicatedMark = "nearkey: a synchronous wait was cancelled"
)

// poolConfig reads a connection URL. Errors do not quote it: it may hold a password.
func poolConfig(url string, opts Options) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, urlError(err)
	}
	config.MaxConns = int32(opts.MaxConns)
	config.MinConns = min(config.MinConns, config.MaxConns)
	config.MaxConnLifetime, config.MaxConnIdleTime, config.MaxConnLifetimeJitter = maxConnLifetime, maxConnIdle, maxConnLifetime/10
	config.PingTimeout = pingTimeout
	prepare(config.ConnConfig, opts.DialTimeout)
	return config, nil
}

// urlError is what is wrong with a connection URL, without the URL.
func urlError(err error) error {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		if cause := errors.Unwrap(parse); cause != nil && !strings.Contains(cause.Error(), "://") {
			return fmt.Errorf("read the connection URL: %w", cause)
		}
	}
	return errors.New("read the connection URL: it is malformed")
}

// prepare sets what all our connections have in common.
func prepare(config *pgx.ConnConfig, dialTimeout time.Duration) {
	if config.ConnectTimeout == 0 || config.ConnectTimeout > dialTimeout {
		config.ConnectTimeout = dialTimeout
	}
	if len(config.Fallbacks) > 0 && config.ValidateConnect == nil { // of several hosts, the one that takes writes
		config.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "nearkey"
	}
	config.OnNotice = noteUnreplicated
}

// noteUnreplicated marks a connection on which the server gave up waiting for its
// standbys: it goes on to report success. The message may be in any language; the
// name of the function that gave up is not.
func noteUnreplicated(conn *pgconn.PgConn, notice *pgconn.Notice) {
	if notice.Routine == "SyncRepWaitForLSN" || strings.Contains(notice.Message, "synchronous replication") {
		conn.CustomData()[unreplicatedMark] = true
	}
}

// takeUnreplicated reports whether a connection is marked, and removes the mark.
func takeUnreplicated(conn *pgconn.PgConn) bool {
	data := conn.CustomData()
	marked := data[unreplicatedMark] != nil
	delete(data, unreplicatedMark)
	return marked
}

// warnOfPlainText tells of a server elsewhere that may be spoken to in the clear.
func warnOfPlainText(config *pgx.ConnConfig, logger *slog.Logger) {
	plain := func(host string, encrypted bool) bool {
		ip := net.ParseIP(host)
		return !encrypted && host != "localhost" && !strings.HasPrefix(host, "/") && (ip == nil || !ip.IsLoopback())
	}
	found := plain(config.Host, config.TLSConfig != nil)
	for _, f := range config.Fallbacks {
		found = found || plain(f.Host, f.TLSConfig != nil)
	}
	if found {
		logger.Warn("PostgreSQL: the connection may not be encrypted; add sslmode=verify-full to its URL", "host", config.Host)
	}
}

// warnOfSettings tells of a server that acknowledges before a write is durable.
func (s *Store) warnOfSettings(ctx context.Context) {
	if s.opts.Portable {
		return
	}
	var fsync, commit string
	err := s.once(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `select current_setting('fsync'), current_setting('synchronous_commit')`).Scan(&fsync, &commit)
	})
	if err == nil && (fsync == "off" || commit == "off" || commit == "local") {
		s.opts.Logger.Warn("PostgreSQL: the server acknowledges writes that a crash may lose", "fsync", fsync, "synchronous_commit", commit)
	}
}
