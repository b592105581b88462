package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// maxSocketDir is the longest path of a folder of sockets: a socket's own has at
	// most 107 bytes.
	maxSocketDir = 60
	// socketGrace is how long what Workers asked for may take when all else has ended.
	socketGrace = 2 * time.Second
)

// socketDir makes the folder of the sockets between this process and those of
// Workers: in the data directory or, where there is none or its path is too long,
// in that of temporary files, by a name that a restart finds again.
func (c *Config) socketDir() (string, error) {
	data, err := filepath.Abs(c.Data)
	if err != nil {
		return "", fmt.Errorf("folder of Workers: %w", err)
	}
	dir := filepath.Join(data, "workers")
	if c.Fleet.Role == roleEdge || len(dir) > maxSocketDir {
		sum := sha256.Sum256([]byte(strings.Join([]string{data, c.Listen, c.Workers.Listen, c.AddressFile, c.Fleet.PoP}, "\x00")))
		dir = filepath.Join(os.TempDir(), "nearkey-"+strconv.Itoa(os.Getuid())+"-"+hex.EncodeToString(sum[:6]))
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("folder of Workers: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return "", fmt.Errorf("folder of Workers: %w", err)
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || info.Mode().Perm() != 0o700 || ok && int(owner.Uid) != os.Getuid() {
		return "", fmt.Errorf("folder of Workers: %s belongs to somebody else, or others can enter it: remove it", dir)
	}
	return dir, nil
}

// listenSocket listens on a unix socket in a folder of ours, in the place of one
// that a process left behind.
func listenSocket(ctx context.Context, path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen for Workers: %w", err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for Workers: %w", err)
	}
	return l, nil
}

// attend has a server answer a socket for as long as the process does its work in
// the background: longer than clients are answered.
func (s *service) attend(l net.Listener, server answerer) {
	s.opened = append(s.opened, func() error { // of a service that did not run
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	s.work = append(s.work, func(ctx context.Context) error {
		served := make(chan error, 1)
		go func() { served <- server.Serve(context.WithoutCancel(ctx), l) }()
		select {
		case err := <-served:
			return fmt.Errorf("serve Workers: %w", err)
		case <-ctx.Done():
		}
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), socketGrace)
		defer cancel()
		err := server.Shutdown(limited)
		if errors.Is(err, context.DeadlineExceeded) {
			err = server.Close()
		}
		<-served // that it was shut down
		return err
	})
}
