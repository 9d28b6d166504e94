{{- define "csi-local.labels" -}}
app.kubernetes.io/name: csi-local
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "csi-local.selector.controller" -}}
app.kubernetes.io/name: csi-local
app.kubernetes.io/component: controller
{{- end }}

{{- define "csi-local.selector.node" -}}
app.kubernetes.io/name: csi-local
app.kubernetes.io/component: node
{{- end }}

{{- define "csi-local.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* The name of a group's DaemonSet and ConfigMap. */}}
{{- define "csi-local.node.name" -}}
{{ if .name }}csi-local-node-{{ .name }}{{ else }}csi-local-node{{ end }}
{{- end }}

{{- define "csi-local.node.directory" -}}
{{ .Values.kubeletDir | trimSuffix "/" }}/plugins/csi-local.io
{{- end }}

{{- /* What lies in a directory of the node that is mounted anyway. Call with {root, path}; "yes" or "". */}}
{{- define "csi-local.node.mounted" -}}
{{- range list .root.Values.kubeletDir .root.Values.runDir "/dev" }}{{ include "csi-local.within" (dict "path" $.path "in" .) }}{{ end }}
{{- end }}

{{- /* Whether one directory is the other, or in it. Call with {path, in}; "yes" or "". */}}
{{- define "csi-local.within" -}}
{{- if hasPrefix (printf "%s/" (clean .in)) (printf "%s/" (clean .path)) }}yes{{ end }}
{{- end }}

{{- /* Refuse directories that would be mounted over each other, and groups that would fight for their pods. */}}
{{- define "csi-local.node.check" -}}
{{- $kubelet := clean .Values.kubeletDir }}
{{- $run := clean .Values.runDir }}
{{- if include "csi-local.within" (dict "path" $kubelet "in" $run) }}
  {{- fail (printf "runDir %s holds kubeletDir %s, or is it: give it a directory of its own, for example %s/plugins/csi-local.io/run" $run $kubelet $kubelet) }}
{{- end }}
{{- range list "/dev" "/etc/csi-local" "/run/cryptsetup" "/tmp" }}
  {{- if or (include "csi-local.within" (dict "path" . "in" $run)) (include "csi-local.within" (dict "path" $run "in" .)) }}
    {{- fail (printf "runDir %s: the pod has something else at %s; give it a directory of its own, for example /run/csi-local" $run .) }}
  {{- end }}
{{- end }}
{{- $groups := list }}
{{- range .Values.nodeGroups }}
  {{- $group := .name | default "default" }}
  {{- if has $group $groups }}{{ fail (printf "two nodeGroups have the name %q (default is that of the one without): their DaemonSets would fight for the same pods" $group) }}{{ end }}
  {{- $groups = append $groups $group }}
  {{- include "csi-local.pools.check" (dict "root" $ "group" $group "pools" .pools) }}
  {{- range $directory := .directories }}
    {{- range list "/bin" "/etc/csi-local" "/lib" "/lib64" "/opt/csi-local" "/proc" "/run/cryptsetup" "/sbin" "/sys" "/tmp" "/usr/bin" "/usr/lib" "/usr/local/bin" "/usr/local/lib" "/usr/sbin" }}
      {{- if include "csi-local.within" (dict "path" . "in" $directory) }}
        {{- fail (printf "nodeGroups %q, directory %s: the pod has its own %s, which it would hide; put what the driver must see into a directory of its own, for example /srv/csi-local" $group $directory .) }}
      {{- end }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end }}

{{- /* Refuse pools that are not apart from each other, or where no data should be. Call with {root, group, pools}. */}}
{{- define "csi-local.pools.check" -}}
{{- $kubelet := clean .root.Values.kubeletDir }}
{{- $run := clean .root.Values.runDir }}
{{- $system := list "/bin" "/boot" "/dev" "/etc" "/lib" "/lib32" "/lib64" "/libx32" "/opt/csi-local" "/proc" "/run" "/sbin" "/sys" "/tmp" "/usr" $kubelet $run }}
{{- $tops := list "/" "/home" "/opt" "/root" "/var" "/var/lib" "/var/log" "/var/tmp" }}
{{- $names := list }}
{{- $devices := list }}
{{- $places := dict }}
{{- range $pool := .pools }}
  {{- $what := printf "nodeGroups %q, pool %q" $.group $pool.name }}
  {{- if has $pool.name $names }}{{ fail (printf "%s: two pools have that name" $what) }}{{ end }}
  {{- $names = append $names $pool.name }}
  {{- if $pool.device }}
    {{- if has (clean $pool.device) $devices }}{{ fail (printf "%s: another pool has the device %s" $what $pool.device) }}{{ end }}
    {{- $devices = append $devices (clean $pool.device) }}
  {{- else }}
    {{- $place := clean ($pool.path | default $pool.image) }}
    {{- $directory := ternary $place (dir $place) (not (empty $pool.path)) }}
    {{- range $system }}
      {{- if include "csi-local.within" (dict "path" $place "in" .) }}{{ fail (printf "%s: %s is in %s, which is no place for data; give it a directory of its own" $what $place .) }}{{ end }}
    {{- end }}
    {{- if or (has $directory $tops) (include "csi-local.within" (dict "path" $kubelet "in" $directory)) (include "csi-local.within" (dict "path" $run "in" $directory)) }}
      {{- fail (printf "%s: %s holds more than the pool, and all of it would be mounted into the pod; give the pool a directory of its own" $what $directory) }}
    {{- end }}
    {{- range $other, $its := $places }}
      {{- if or (eq $place $its.place) (and $its.path (include "csi-local.within" (dict "path" $place "in" $its.place))) (and $pool.path (include "csi-local.within" (dict "path" $its.place "in" $place))) }}
        {{- fail (printf "%s: %s is that of pool %q, is in it or holds it (%s)" $what $place $other $its.place) }}
      {{- end }}
    {{- end }}
    {{- $places = set $places $pool.name (dict "place" $place "path" (not (empty $pool.path))) }}
  {{- end }}
{{- end }}
{{- end }}

{{- /*
The host's directories that a group needs, as JSON: those of its pools of kind path, those that hold the file of kind
image, and what is given besides. What lies in a directory that is mounted anyway is not mounted twice. Call with
{root, group}.
*/}}
{{- define "csi-local.node.hostPaths" -}}
{{- $wanted := .group.directories | default list }}
{{- range .group.pools }}
  {{- if .path }}{{ $wanted = append $wanted .path }}{{ end }}
  {{- if .image }}{{ $wanted = append $wanted (dir .image) }}{{ end }}
{{- end }}
{{- $sorted := list }}
{{- range $wanted }}{{ $sorted = append $sorted (clean .) }}{{ end }}
{{- $found := list }}
{{- range $path := $sorted | uniq | sortAlpha }}
  {{- $covered := include "csi-local.node.mounted" (dict "root" $.root "path" $path) }}
  {{- range $found }}{{ if include "csi-local.within" (dict "path" $path "in" .) }}{{ $covered = "yes" }}{{ end }}{{ end }}
  {{- if not $covered }}{{ $found = append $found $path }}{{ end }}
{{- end }}
{{- $found | toJson }}
{{- end }}

{{- /* What every sidecar of the controller has in common. Call with {root, name, sidecar}; arguments follow. */}}
{{- define "csi-local.sidecar.args" -}}
- --csi-address=/csi/csi.sock
- --timeout={{ .root.Values.sidecars.timeout }}
- --retry-interval-start={{ .root.Values.sidecars.retryIntervalStart }}
- --retry-interval-max={{ .root.Values.sidecars.retryIntervalMax }}
- --kube-api-qps={{ .root.Values.sidecars.kubeAPIQPS }}
- --kube-api-burst={{ .root.Values.sidecars.kubeAPIBurst }}
- --leader-election={{ .root.Values.sidecars.leaderElection }}
- --leader-election-namespace={{ .root.Release.Namespace }}
# Where all controllers died at once, nobody leads for the length of a lease.
- --leader-election-lease-duration=10s
- --leader-election-renew-deadline=7s
- --leader-election-retry-period=2s
- --http-endpoint=:{{ .port }}
- --v={{ .root.Values.sidecars.logLevel }}
{{- end }}

{{- define "csi-local.sidecar.rest" -}}
ports:
  - {name: {{ .name }}, containerPort: {{ .port }}}
livenessProbe:
  httpGet: {path: /healthz/leader-election, port: {{ .name }}}
  initialDelaySeconds: 10
  periodSeconds: 20
  timeoutSeconds: 10
securityContext:
  {{- include "csi-local.unprivileged" . | nindent 2 }}
resources:
  {{- toYaml .sidecar.resources | nindent 2 }}
volumeMounts:
  - {name: socket, mountPath: /csi}
{{- end }}

{{- define "csi-local.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* A group's configuration file. Call with {root, group}. */}}
{{- define "csi-local.node.config" -}}
runDir: {{ .root.Values.runDir }}
kubeletDir: {{ .root.Values.kubeletDir | trimSuffix "/" }}
maxVolumes: {{ if hasKey .group "maxVolumes" }}{{ int .group.maxVolumes }}{{ else }}{{ int .root.Values.node.maxVolumes }}{{ end }}
logLevel: {{ .root.Values.logLevel }}
logFormat: {{ .root.Values.logFormat }}
pools:
  {{- range .group.pools }}
  - {{ toJson . }}
  {{- end }}
{{- end }}
