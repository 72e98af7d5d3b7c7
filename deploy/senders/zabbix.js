// Script of a Zabbix media type "Webhook" that posts every event to opsmesh. Parameters, by name and value:
//   url             https://HOST/v1/webhooks/zabbix
//   token           a secret of the source zabbix
//   timezone        zone of the Zabbix server, such as +02:00
//   event_id        {EVENT.ID}                 trigger_id            {TRIGGER.ID}
//   event_value     {EVENT.VALUE}              event_status          {EVENT.STATUS}
//   event_source    {EVENT.SOURCE}             event_nseverity       {EVENT.NSEVERITY}
//   event_name      {EVENT.NAME}               trigger_name          {TRIGGER.NAME}
//   event_opdata    {EVENT.OPDATA}             event_tags            {EVENT.TAGSJSON}
//   event_date      {EVENT.DATE}               event_time            {EVENT.TIME}
//   event_recovery_id    {EVENT.RECOVERY.ID}
//   event_recovery_date  {EVENT.RECOVERY.DATE} event_recovery_time   {EVENT.RECOVERY.TIME}
//   event_update_status  {EVENT.UPDATE.STATUS} event_update_action   {EVENT.UPDATE.ACTION}
//   event_update_date    {EVENT.UPDATE.DATE}   event_update_time     {EVENT.UPDATE.TIME}
//   event_ack_status     {EVENT.ACK.STATUS}    message               {ALERT.MESSAGE}
//   host_host       {HOST.HOST}                host_name             {HOST.NAME}
//   host_ip         {HOST.IP}                  zabbix_url            {$ZABBIX.URL}
// Keep more than one attempt: what opsmesh does not accept at once comes again.
var params = JSON.parse(value);
var request = new HttpRequest();
request.addHeader('Content-Type: application/json');
request.addHeader('Authorization: Bearer ' + params.token);
var body = {};
Object.keys(params).forEach(function (name) {
    if (name !== 'token' && name !== 'url' && name !== 'HTTPProxy') {
        body[name] = params[name];
    }
});
if (params.HTTPProxy) {
    request.setProxy(params.HTTPProxy);
}
// Nobody pastes macros into JSON here: a quote in a name must not break the message.
var answer = request.post(params.url, JSON.stringify(body));
if (request.getStatus() < 200 || request.getStatus() > 299) {
    throw 'opsmesh answered ' + request.getStatus() + ': ' + answer;
}
return 'OK';
