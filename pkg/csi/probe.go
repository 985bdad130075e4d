package csi

import (
	"context"
	"fmt"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/holdfast-csi/holdfast/pkg/rpcerr"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// ProbeSocket asks the plugin behind a CSI socket whether it is ready; nil when
// it is, ErrUnavailable when it is not yet.
func ProbeSocket(ctx context.Context, socket string) error {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("probe %s: %w", socket, err)
	}
	defer conn.Close()
	r, err := csipb.NewIdentityClient(conn).Probe(ctx, &csipb.ProbeRequest{})
	if err != nil {
		return fmt.Errorf("probe %s: %w", socket, rpcerr.FromStatus(err))
	}
	if r.Ready != nil && !r.Ready.Value {
		return fmt.Errorf("probe %s: not ready: %w", socket, volume.ErrUnavailable)
	}
	return nil
}
